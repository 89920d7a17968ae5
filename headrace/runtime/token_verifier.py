"""Who may call what: tokens are checked against public keys in a folder. Shared by replicas and the desk; light."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from jwt.algorithms import OKPAlgorithm

ISSUER = "headrace"
ALGORITHM = "EdDSA"
LEEWAY_SECONDS = 60
"""How far the clocks of two machines may differ."""
LONGEST_TOKEN = 8192
MAX_VERIFIED = 10_000
"""Verified tokens that are kept, so that a signature is looked at once and not with every request."""
LOOK_SECONDS = 1.0
"""How often the folder's files are looked at: a revoked token is refused after so long."""
REQUIRED = ["iss", "sub", "jti", "iat", "exp"]

# Of RFC 8032, 7.1, test 1: verified in place of what cannot be, so that every refusal takes as long. It opens nothing.
_NOBODYS_KEY: Any = OKPAlgorithm.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
_NOBODYS_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


class InvalidToken(Exception):
    """The token opens nothing. Whoever is refused learns no more than that."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a token stands for."""

    tenant: str
    models: frozenset[str]
    """Names, or `*` alone for all."""
    jti: str
    expires_at: float
    """Seconds since 1970."""
    rows_per_day: int | None = None
    has_all_models: bool = field(init=False, default=False)
    """Whether it may call every model, those to come too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_all_models", "*" in self.models)

    def may_call(self, model: str) -> bool:
        return self.has_all_models or model in self.models


OPEN_ACCESS = Caller("open", frozenset({"*"}), "", float("inf"))
"""The caller where no token is asked for."""


def bearer(value: bytes) -> str:
    """The token in an `authorization` header's value, empty when there is none."""
    if value[:7].lower() == b"bearer ":
        return str(value[7:], "latin-1").strip()
    return ""


class TokenVerifier:
    """Checks tokens by the public keys in `folder/jwks.json`, but for those named in `folder/revoked.json`.

    Both files are read again when they change; one that cannot be read leaves in force what was read last, and as long as
    nothing was, nobody is let in. A `folder` of None lets everybody in.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._keys: dict[str, Any] = {}
        self._revoked: frozenset[str] | None = None
        self._verified: dict[str, Caller] = {}
        self._seen: dict[str, tuple[int, int, int] | None] = {}
        self._look_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._folder is None

    def verify(self, token: str) -> Caller:
        """The caller that `token` stands for. Every refusal takes the time of one signature, whatever its reason.

        Raises:
            InvalidToken: no token, not signed by a known key, expired, not valid yet, or revoked.
        """
        if self._folder is None:
            return OPEN_ACCESS
        self._look()
        caller = self._verified.get(token)
        if caller is not None and self._holds(caller):
            return caller
        self._verified.pop(token, None)
        caller = self._verify(token)
        if not self._holds(caller):
            raise InvalidToken
        if len(self._verified) >= MAX_VERIFIED:
            self._verified.pop(next(iter(self._verified)))
        self._verified[token] = caller
        return caller

    def _holds(self, caller: Caller) -> bool:
        """Whether a token whose signature was good is in force now."""
        is_revoked = self._revoked is None or caller.jti in self._revoked
        return not is_revoked and time.time() < caller.expires_at + LEEWAY_SECONDS

    def _verify(self, token: str) -> Caller:
        key = self._key(token)
        if key is None:
            return _refuse_as_slowly()
        try:
            claims = jwt.decode(token, key, [ALGORITHM], options={"require": REQUIRED}, issuer=ISSUER, leeway=LEEWAY_SECONDS)
            return _caller(claims)
        except (jwt.PyJWTError, TypeError, ValueError):
            raise InvalidToken from None

    def _key(self, token: str) -> Any:
        """The key that a token says it was signed with; None for a token whose signature is not worth a look."""
        if len(token) > LONGEST_TOKEN:
            return None
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            return None
        return self._keys.get(header.get("kid", "")) if header.get("alg") == ALGORITHM else None

    def _look(self) -> None:
        """Reads again what has changed, at most once in `LOOK_SECONDS`."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        assert self._folder is not None
        if (content := self._changed("jwks.json")) is not None and (keys := _keys(content)) is not None:
            self._keys = keys
            self._verified.clear()
        content = self._changed("revoked.json")
        if content is not None and (revoked := _revoked(content)) is not None:
            self._revoked = revoked

    def _changed(self, name: str) -> bytes | None:
        """The file's content when it is another than the last time; empty for a file that is not there."""
        assert self._folder is not None
        try:
            found = (self._folder / name).stat()
            mark = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._seen.get(name, ()) == mark:
                return None
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            mark, content = None, b""
            if name in self._seen and self._seen[name] is None:
                return None
        except OSError:
            return None
        self._seen[name] = mark
        return content


def _refuse_as_slowly() -> Caller:
    """
    Raises:
        InvalidToken: always, after the time that a signature takes.
    """
    _NOBODYS_KEY.verify(_NOBODYS_SIGNATURE, b"")
    raise InvalidToken


def make_claims(
    tenant: str, jti: str, models: Sequence[str], issued: int, expires: int, rate: float | None, rows_per_day: int | None
) -> dict[str, Any]:
    """The claims of a token (RFC 7519), as `TokenVerifier` reads them. `rate` is for Envoy alone, in requests per second.

    Args:
        issued: seconds since 1970, as `expires`.
    """
    limits = {"rate": rate, "rows_per_day": rows_per_day}
    return {
        **{"iss": ISSUER, "sub": tenant, "jti": jti, "iat": issued, "exp": expires, "models": list(models)},
        **{name: limit for name, limit in limits.items() if limit is not None},
    }


def _caller(claims: dict[str, Any]) -> Caller:
    tenant, models, rows = claims["sub"], claims.get("models"), claims.get("rows_per_day")
    if not tenant or not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise InvalidToken
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 0):
        raise InvalidToken
    return Caller(tenant, frozenset(models), claims["jti"], float(claims["exp"]), rows)


def _keys(content: bytes) -> dict[str, Any] | None:
    """Public keys by their `kid`; None when the file cannot be read."""
    try:
        found = json.loads(content)["keys"] if content else []
        return {key["kid"]: OKPAlgorithm.from_jwk(key) for key in found if key.get("crv") == "Ed25519" and "d" not in key}
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError):
        return None


def _revoked(content: bytes) -> frozenset[str] | None:
    """The `jti` of each revoked token; None when the file cannot be read."""
    try:
        return frozenset(json.loads(content)["revoked"] if content else ())
    except (ValueError, KeyError, TypeError):
        return None
