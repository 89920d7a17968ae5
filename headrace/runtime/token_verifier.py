"""Verifies tokens (JWT) with the public keys in a folder. Shared by replicas and the API server; light."""

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
"""Allowed difference between the clocks of two machines."""
LONGEST_TOKEN = 8192
MAX_VERIFIED = 10_000
"""Size of the cache of verified tokens, so that a signature is verified once and not with every request."""
RELOAD_SECONDS = 1.0
"""How often the folder's files are checked for changes: a revoked token is refused after at most this long."""
REQUIRED = ["iss", "sub", "jti", "iat", "exp"]
DECIDE = frozenset({"operator", "reviewer"})
"""Roles of people who may approve and reject versions."""
SEE = DECIDE | {"viewer"}
"""Roles of people who may see versions and their history. A token without a role is a tenant's."""

# From RFC 8032, 7.1, test 1. It is verified instead of a token that cannot be, so that every refusal takes equally long.
_DUMMY_KEY: Any = OKPAlgorithm.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
_DUMMY_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


class InvalidToken(Exception):
    """The token is not valid. The client does not learn why."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller."""

    tenant: str
    models: frozenset[str]
    """Names of the models that the token gives access to; `*` for all."""
    jti: str
    expires_at: float
    """Seconds since 1970."""
    rows_per_day: int | None = None
    role: str | None = None
    """One of `SEE`; None for a tenant, who calls models only."""
    tokens_per_day: int | None = None
    """Limit of the tokens of prompts and of generated texts together, as `tokens_per_minute`."""
    tokens_per_minute: int | None = None
    has_all_models: bool = field(init=False, default=False)
    """Whether the token gives access to all models, future ones included."""
    limits_tokens: bool = field(init=False, default=False)
    """Whether the token limits tokens of texts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_all_models", "*" in self.models)
        object.__setattr__(self, "limits_tokens", (self.tokens_per_day, self.tokens_per_minute) != (None, None))

    def may_call(self, model: str) -> bool:
        return self.has_all_models or model in self.models


OPEN_ACCESS = Caller("open", frozenset({"*"}), "", float("inf"))
"""The caller when access is open, without tokens."""


def bearer(value: bytes) -> str:
    """Returns the token in the value of an `authorization` header, or an empty text."""
    if value[:7].lower() == b"bearer ":
        return str(value[7:], "latin-1").strip()
    return ""


class TokenVerifier:
    """Verifies tokens with the public keys in `folder/jwks.json`; tokens listed in `folder/revoked.json` are refused.

    Both files are reloaded when they change. If one cannot be read, its last content stays valid; if it was never read, every
    token is refused. A missing file of keys refuses every token; a missing list of revoked tokens, which may name any of them,
    is one that cannot be read. A `folder` of None means open access.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._keys: dict[str, Any] = {}
        self._revoked: frozenset[str] | None = None
        self._verified: dict[str, Caller] = {}
        self._file_stats: dict[str, tuple[int, int, int] | None] = {}
        self._reload_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._folder is None

    def verify(self, token: str) -> Caller:
        """Returns the caller that `token` identifies. Every refusal takes the time of one signature check.

        Raises:
            InvalidToken: the token is missing, not signed by a known key, expired, not valid yet, or revoked.
        """
        if self._folder is None:
            return OPEN_ACCESS
        self._reload()
        caller = self._verified.get(token)
        if caller is not None and self._is_active(caller):
            return caller
        self._verified.pop(token, None)
        caller = self._verify_signature(token)
        if not self._is_active(caller):
            raise InvalidToken
        if len(self._verified) >= MAX_VERIFIED:
            self._verified.pop(next(iter(self._verified)))
        self._verified[token] = caller
        return caller

    def _is_active(self, caller: Caller) -> bool:
        """Whether a token with a valid signature is neither revoked nor expired."""
        is_revoked = self._revoked is None or caller.jti in self._revoked
        return not is_revoked and time.time() < caller.expires_at + LEEWAY_SECONDS

    def _verify_signature(self, token: str) -> Caller:
        key = self._key(token)
        if key is None:
            return _refuse_in_constant_time()
        try:
            claims = jwt.decode(token, key, [ALGORITHM], options={"require": REQUIRED}, issuer=ISSUER, leeway=LEEWAY_SECONDS)
            return _caller(claims)
        except (jwt.PyJWTError, TypeError, ValueError):
            raise InvalidToken from None

    def _key(self, token: str) -> Any:
        """Returns the key that a token names in its header, or None if its signature need not be checked."""
        if len(token) > LONGEST_TOKEN:
            return None
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            return None
        return self._keys.get(header.get("kid", "")) if header.get("alg") == ALGORITHM else None

    def _reload(self) -> None:
        """Reloads changed files, at most once in `RELOAD_SECONDS`."""
        now = time.monotonic()
        if now < self._reload_at:
            return
        self._reload_at = now + RELOAD_SECONDS
        assert self._folder is not None
        if (content := self._changed("jwks.json")) is not None and (keys := _keys(content)) is not None:
            self._keys = keys
            self._verified.clear()
        content = self._changed("revoked.json")
        if content is not None and (revoked := _revoked(content)) is not None:
            self._revoked = revoked

    def _changed(self, name: str) -> bytes | None:
        """Returns the content of a file that has changed since the last call, else None; empty if it does not exist."""
        assert self._folder is not None
        try:
            found = (self._folder / name).stat()
            stat = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._file_stats.get(name, ()) == stat:
                return None
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            stat, content = None, b""
            if name in self._file_stats and self._file_stats[name] is None:
                return None
        except OSError:
            return None
        self._file_stats[name] = stat
        return content


def _refuse_in_constant_time() -> Caller:
    """Takes the time of a signature check.

    Raises:
        InvalidToken: always.
    """
    _DUMMY_KEY.verify(_DUMMY_SIGNATURE, b"")
    raise InvalidToken


def make_claims(
    tenant: str,
    jti: str,
    models: Sequence[str],
    issued: int,
    expires: int,
    rate: float | None,
    rows_per_day: int | None,
    role: str | None = None,
    tokens_per_day: int | None = None,
    tokens_per_minute: int | None = None,
) -> dict[str, Any]:
    """The claims of a token (RFC 7519), as `TokenVerifier` reads them. `rate` is for Envoy alone, in requests per second.

    Args:
        issued: seconds since 1970, as `expires`.
    """
    limits = {"rows_per_day": rows_per_day, "tokens_per_day": tokens_per_day, "tokens_per_minute": tokens_per_minute}
    optional = {"rate": rate, **limits, "role": role}
    return {
        **{"iss": ISSUER, "sub": tenant, "jti": jti, "iat": issued, "exp": expires, "models": list(models)},
        **{name: value for name, value in optional.items() if value is not None},
    }


def _caller(claims: dict[str, Any]) -> Caller:
    tenant, models, role = claims["sub"], claims.get("models"), claims.get("role")
    limits = [claims.get(name) for name in ("rows_per_day", "tokens_per_day", "tokens_per_minute")]
    if not tenant or not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise InvalidToken
    if any(one is not None and (not isinstance(one, int) or isinstance(one, bool) or one < 0) for one in limits):
        raise InvalidToken
    rows, by_day, by_minute = limits
    if role is not None and role not in SEE:
        raise InvalidToken
    return Caller(tenant, frozenset(models), claims["jti"], float(claims["exp"]), rows, role, by_day, by_minute)


def _keys(content: bytes) -> dict[str, Any] | None:
    """Returns public keys by `kid`, or None if the file is not valid."""
    try:
        found = json.loads(content)["keys"] if content else []
        return {key["kid"]: OKPAlgorithm.from_jwk(key) for key in found if key.get("crv") == "Ed25519" and "d" not in key}
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError):
        return None


def _revoked(content: bytes) -> frozenset[str] | None:
    """Returns the `jti` of each revoked token, or None if the file is missing or not valid."""
    try:
        return frozenset(json.loads(content)["revoked"])
    except (ValueError, KeyError, TypeError):
        return None
