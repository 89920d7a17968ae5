"""Access tokens: who may call which models, at which rate, and in which role. Issued and revoked here, verified elsewhere.

A token is a JWT signed with Ed25519 (RFC 8037). The private key stays in `.headrace/keys/`; replicas and Envoy get the
public ones, and the ids of revoked tokens. The facts of an issued token are stored, the token itself is not.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from headrace.errors import DamagedFile, UsageError, near_miss
from headrace.files import read_object, write_secret
from headrace.project import Project
from headrace.runtime.token_verifier import ALGORITHM, LEEWAY_SECONDS, LONGEST_TOKEN, OPEN_ACCESS, make_claims
from headrace.serving.access import audit, keys

DAY = 86400
OPERATOR = "operator"
"""Tenant and role of the operator, who runs this project."""
ISSUED_ROLES = ("reviewer", "viewer")
"""Roles that a token can be issued for."""
RESERVED = {OPERATOR: "the operator's own token has it", OPEN_ACCESS.tenant: "all callers have it while access is 'open'"}
OPERATOR_SECONDS = 30 * DAY
MAX_LIFETIME_SECONDS = 366 * DAY
KEPT_SECONDS = 90 * DAY
"""How long the list shows a token after it expired."""
MIN_RATE, MAX_RATE = 1 / DAY, 1e6
"""Requests per second; Envoy accepts no limit outside of these."""
DELEGATED_SECONDS = 600
"""Lifetime of a token in place of an issued one; `revoke` refuses it for so long, also if the issued one expired before."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY}


@dataclass(frozen=True)
class IssuedToken:
    """The stored facts of a token."""

    jti: str
    """Its id, by which it is revoked."""
    tenant: str
    models: list[str]
    """Names; or `*` alone for all models, future ones included. Empty for a token of a role that calls no model."""
    issued: int
    """Seconds since 1970, as are `expires` and `revoked`."""
    expires: int
    kid: str
    """Id of the key that signed it."""
    rate: float | None = None
    """Requests per second of its tenant; None for no limit."""
    rows_per_day: int | None = None
    revoked: int | None = None
    role: str | None = None
    tokens_per_day: int | None = None
    """Of prompts and of generated texts together, as `tokens_per_minute`."""
    tokens_per_minute: int | None = None

    def is_active(self, now: float) -> bool:
        return self.revoked is None and now < self.expires + LEEWAY_SECONDS


def issue(
    project: Project,
    tenant: str,
    models: Sequence[str],
    seconds: int,
    rate: float | None = None,
    rows_per_day: int | None = None,
    role: str | None = None,
    tokens_per_day: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[str, IssuedToken]:
    """Issues a token, and returns it with its facts, which are on disk by then: every issued token can be revoked.

    Args:
        role: one of `ISSUED_ROLES`; such a token needs no models.

    Raises:
        UsageError: an invalid tenant name or role, no models or too many, or a lifetime or rate out of range.
    """
    _require_tenant(tenant)
    if role is not None and role not in ISSUED_ROLES:
        raise UsageError(f"a token cannot be issued for the role {role!r}", where="--role", hint=" or ".join(ISSUED_ROLES))
    if not models and role is None:
        hint = "--models 'digits,flights', or '*' for all; or --role reviewer, for a person who approves versions"
        raise UsageError("a token needs at least one model, or a role", where="--models", hint=hint)
    if not 0 < seconds <= MAX_LIFETIME_SECONDS:
        raise UsageError(
            f"a token is valid for at most {MAX_LIFETIME_SECONDS // DAY} days", where="--expires", hint="--expires 90d"
        )
    if rate is not None and not MIN_RATE <= rate <= MAX_RATE:
        raise UsageError("a rate is at least 1/d and at most 1000000/s", where="--rate", hint="--rate 100/s")
    with _locked(project):
        token, facts = _sign(project, tenant, models, seconds, rate, rows_per_day, role, tokens_per_day, tokens_per_minute)
    audit.record(project, "tokens issue", asdict(facts))
    return token, facts


def list_tokens(project: Project) -> list[IssuedToken]:
    """All issued tokens, oldest first, until `KEPT_SECONDS` after they expire.

    Raises:
        DamagedFile: the list cannot be read.
    """
    path = _facts_path(project)
    hint = f"restore it from a backup; or rm '{path}'   (issued tokens stay valid, but can no longer be listed or revoked)"
    if (found := read_object(path, hint, tokens=list)) is None:
        return []
    known = {field.name for field in fields(IssuedToken)}
    try:
        stored = [IssuedToken(**{name: value for name, value in facts.items() if name in known}) for facts in found["tokens"]]
    except (AttributeError, TypeError) as error:
        raise DamagedFile(f"damaged file: not a list of tokens ({error})", where=str(path), hint=hint) from None
    return stored


def list_stat(project: Project) -> tuple[int, int] | None:
    """Returns numbers that change with the list of tokens; None if there is none."""
    try:
        found = _facts_path(project).stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def revoke(project: Project, name: str) -> list[IssuedToken]:
    """Revokes the token with this id, or all tokens of this tenant. Returns those that were not revoked until now.

    Expired tokens are revoked too: a batch that was sent with one goes on, and ends by this.

    Raises:
        UsageError: neither a token has this id nor a tenant this name.
    """
    with _locked(project):
        now, stored = int(time.time()), list_tokens(project)
        matching = [facts for facts in stored if facts.jti == name] or [facts for facts in stored if facts.tenant == name]
        if not matching:
            known = {facts.tenant for facts in stored} | {facts.jti for facts in stored}
            raise UsageError(f"unknown token or tenant {name!r}; {near_miss(name, known)}", hint="headrace tokens list")
        revoked = [replace(facts, revoked=now) for facts in matching if facts.revoked is None]
        changed = {facts.jti: facts for facts in revoked}
        after = [changed.get(facts.jti, facts) for facts in stored]
        _publish_revoked(project, after)  # first, so that a kill in between leaves a token refused, not accepted
        _write_facts(project, after)
    audit.record(project, "tokens revoke", {"name": name, "revoked": sorted(changed)})
    return revoked


def rotate(project: Project) -> str:
    """Makes a new signing key and returns its id. Earlier keys still verify, until the last token they signed has expired."""
    with _locked(project):
        kid = keys.make_signing_key(project)
        keys.publish_only(project, {facts.kid for facts in list_tokens(project) if facts.is_active(time.time())})
    audit.record(project, "tokens rotate", {"kid": kid})
    return kid


def prepare_tokens(project: Project) -> None:
    """Makes the signing key, the files with which replicas verify tokens, and the operator's token, where they are missing."""
    operator_token(project)
    with _locked(project):
        keys.publish_only(project, {facts.kid for facts in list_tokens(project) if facts.is_active(time.time())})
        _publish_revoked(project, list_tokens(project))


def operator_token(project: Project) -> str:
    """The operator's token: all models, no limits. It is replaced when a third of its lifetime is left."""
    with _locked(project):
        if not (project.token_keys / "revoked.json").exists():
            _publish_revoked(project, list_tokens(project))  # verifiers refuse every token without it
        path = project.keys / "operator.token"
        with contextlib.suppress(FileNotFoundError):
            token = path.read_text(encoding="ascii").strip()
            facts = next((f for f in list_tokens(project) if f.jti == _jti(token)), None)
            is_active = facts is not None and facts.revoked is None and time.time() < facts.expires - OPERATOR_SECONDS / 3
            if is_active and facts is not None and facts.role == OPERATOR:  # earlier versions knew no roles
                return token
        token, _ = _sign(project, OPERATOR, ["*"], OPERATOR_SECONDS, role=OPERATOR)
        write_secret(path, token + "\n")
        return token


def delegate(
    project: Project,
    jti: str,
    tenant: str,
    model: str,
    rows_per_day: int | None,
    tokens_per_day: int | None = None,
    tokens_per_minute: int | None = None,
) -> str:
    """A token for one model in place of an issued one, for `DELEGATED_SECONDS`, with the same id: revoking covers both."""
    now = int(time.time())
    limits = (rows_per_day, None, tokens_per_day, tokens_per_minute)
    return sign(project, make_claims(tenant, jti, [model], now, now + DELEGATED_SECONDS, None, *limits))


def sign(project: Project, claims: dict[str, Any]) -> str:
    """Returns claims as a JWT, signed with the project's key."""
    import jwt

    with _locked(project):
        kid, key = keys.signing_key(project)
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid})


def read_signed(project: Project, signed: str, issuer: str) -> dict[str, Any] | None:
    """Returns the claims of a JWT of `sign` with this issuer; None unless a published key of the project signed it."""
    import jwt
    from jwt.algorithms import OKPAlgorithm

    try:
        kid = jwt.get_unverified_header(signed).get("kid")
        jwk = next((jwk for jwk in keys.public_keys(project) if jwk["kid"] == kid), None)
        if jwk is None:
            return None
        key: Any = OKPAlgorithm.from_jwk(dict(jwk))
        claims: dict[str, Any] = jwt.decode(signed, key, [ALGORITHM], issuer=issuer, options={"require": ["iss"]})
        return claims
    except (jwt.PyJWTError, ValueError, KeyError):
        return None


def rates(project: Project) -> dict[str, float]:
    """Requests per second by tenant: the highest rate of its active tokens. A tenant with an unlimited token has no entry.

    A token that calls no model lifts no limit.
    """
    now = time.time()
    found: dict[str, list[float | None]] = {}
    for facts in list_tokens(project):
        if facts.is_active(now) and (facts.models or facts.rate is not None):
            found.setdefault(facts.tenant, []).append(facts.rate)
    return {tenant: max(rate for rate in limits if rate is not None) for tenant, limits in found.items() if None not in limits}


def revoked_ids(project: Project) -> list[str]:
    """Ids of revoked tokens that have not expired. Where the file for verifiers is missing, the list of tokens has them."""
    published = keys.read_token_keys(project, "revoked.json").get("revoked", {})
    return sorted(_revoked(list_tokens(project), published))


def parse_seconds(text: str) -> int:
    """`30d`, `12h`, `45m` or `90s` as seconds.

    Raises:
        UsageError: another text.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if not match or int(match[1]) == 0:
        raise UsageError(
            f"not a time span: {text!r}", where="--expires", hint="a number and s, m, h or d, for example 30d or 12h"
        )
    return int(match[1]) * UNITS[match[2]]


def parse_rate(text: str) -> float:
    """`100/s`, `30/m` or `1000/h` as requests per second.

    Raises:
        UsageError: another text.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*/\s*([smhd])", text.strip())
    if not match:
        raise UsageError(
            f"not a rate: {text!r}", where="--rate", hint="a number, / and s, m, h or d, for example 100/s or 30/m"
        )
    return float(match[1]) / UNITS[match[2]]


def rate_text(rate: float) -> str:
    """Formats requests per second for `parse_rate`, in the shortest unit of time that gives a whole number."""
    for unit in "smhd":
        asked = rate * UNITS[unit]
        if asked > 0.5 and abs(asked - round(asked)) < 1e-6 * asked:
            return f"{round(asked)}/{unit}"
    return f"{rate:g}/s"


def parse_count(text: str, option: str) -> int:
    """`1e6`, `1000000` or `1_000_000` as a whole number.

    Raises:
        UsageError: another text, or not a whole number.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e15 or value != int(value):
        unit = option.removeprefix("--").partition("-")[0]
        raise UsageError(f"not a number of {unit}: {text!r}", where=option, hint="a whole number, for example 50000 or 1e6")
    return int(value)


def _sign(
    project: Project,
    tenant: str,
    models: Sequence[str],
    seconds: int,
    rate: float | None = None,
    rows_per_day: int | None = None,
    role: str | None = None,
    tokens_per_day: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[str, IssuedToken]:
    import jwt

    kid, key = keys.signing_key(project)
    now = int(time.time())
    names = sorted(set(models))
    limits: dict[str, Any] = {"tokens_per_day": tokens_per_day, "tokens_per_minute": tokens_per_minute}
    facts = IssuedToken(secrets.token_hex(8), tenant, names, now, now + seconds, kid, rate, rows_per_day, role=role, **limits)
    claims = make_claims(tenant, facts.jti, facts.models, now, facts.expires, rate, rows_per_day, role, **limits)
    token = jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid})
    if len(token) > LONGEST_TOKEN:
        raise UsageError(f"{len(facts.models)} models are too many for one token", where="--models", hint="--models '*'")
    fresh = [known for known in list_tokens(project) if known.expires + KEPT_SECONDS > now]
    _publish_revoked(project, fresh)  # verifiers refuse every token while the file is missing
    _write_facts(project, [*fresh, facts])
    return token, facts


def _require_tenant(tenant: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", tenant):
        hint = "letters and digits, and . _ @ - after the first character; at most 64"
        raise UsageError(f"invalid tenant name {tenant!r}", where="--tenant", hint=hint)
    if tenant.lower() in RESERVED:
        message = f"the tenant name {tenant!r} is reserved: {RESERVED[tenant.lower()]}"
        raise UsageError(
            message, where="--tenant", hint="choose another name; headrace tokens show prints the operator's token"
        )


def _publish_revoked(project: Project, stored: list[IssuedToken]) -> None:
    """Writes the ids of revoked tokens; an id is dropped once its token has expired."""
    before = keys.read_token_keys(project, "revoked.json")
    wanted = {"revoked": _revoked(stored, before.get("revoked", {}))}
    if before != wanted:
        keys.write_token_keys(project, "revoked.json", wanted)


def _revoked(stored: list[IssuedToken], published: Mapping[str, int]) -> dict[str, int]:
    """Returns the ids of revoked tokens that have not expired, with the times at which the last token of this id expires."""
    now = time.time()
    ends = {facts.jti: max(facts.expires, facts.revoked + DELEGATED_SECONDS) for facts in stored if facts.revoked is not None}
    found = {**published, **ends}
    return {jti: expires for jti, expires in sorted(found.items()) if now < expires + LEEWAY_SECONDS}


def _facts_path(project: Project) -> Path:
    return project.keys / "tokens.json"


def _write_facts(project: Project, stored: list[IssuedToken]) -> None:
    write_secret(_facts_path(project), json.dumps({"tokens": [asdict(facts) for facts in stored]}, indent=1) + "\n")


def _jti(token: str) -> str | None:
    import jwt

    try:
        found = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return None
    jti = found.get("jti")
    return jti if isinstance(jti, str) else None


@contextlib.contextmanager
def _locked(project: Project) -> Iterator[None]:
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "tokens.lock"):
        yield
