"""Tokens: who may call which models, how often, how much. Issued and revoked here; replicas only check them.

A token is a JWT signed with Ed25519 (RFC 8037). The private key stays in `.headrace/keys/`; replicas and Envoy get the
public ones, and the ids of what was revoked. Of a token that was issued only its facts are kept, never itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from headrace.errors import UsageError, near_miss
from headrace.files import read_json, write_json, write_secret
from headrace.project import Project
from headrace.runtime.token_verifier import ALGORITHM, LEEWAY_SECONDS, LONGEST_TOKEN, make_claims
from headrace.serving.access import audit, keys

DAY = 86400
OPERATOR = "operator"
"""The tenant of whoever runs this house."""
OPERATOR_SECONDS = 30 * DAY
LONGEST_SECONDS = 366 * DAY
KEPT_SECONDS = 90 * DAY
"""How long the list shows a token that has expired."""
SLOWEST, FASTEST = 1 / DAY, 1e6
"""Requests per second: outside of these Envoy takes no limit."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY}


@dataclass(frozen=True)
class Issued:
    """What is known of a token."""

    jti: str
    """Its id, by which it is revoked."""
    tenant: str
    models: list[str]
    """Names, or `*` alone for all, those to come too."""
    issued: int
    """Seconds since 1970, as `expires` and `revoked`."""
    expires: int
    kid: str
    """The key that signed it."""
    rate: float | None = None
    """Requests per second of its tenant; None without a limit."""
    rows_per_day: int | None = None
    revoked: int | None = None

    def is_in_force(self, now: float) -> bool:
        return self.revoked is None and now < self.expires + LEEWAY_SECONDS


def issue(
    project: Project,
    tenant: str,
    models: Sequence[str],
    seconds: int,
    rate: float | None = None,
    rows_per_day: int | None = None,
) -> tuple[str, Issued]:
    """A new token and its facts, which are on disk before it is: whatever is given out can be revoked.

    Raises:
        UsageError: no name for a tenant, no models or too many of them, a lifetime or a rate that cannot be.
    """
    _require_tenant(tenant)
    if not models:
        raise UsageError("a token opens at least one model", where="--models", hint="--models 'digits,flights', or '*' for all")
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UsageError(f"a token lives at most {LONGEST_SECONDS // DAY} days", where="--expires", hint="--expires 90d")
    if rate is not None and not SLOWEST <= rate <= FASTEST:
        raise UsageError("a rate is at least 1/d and at most 1000000/s", where="--rate", hint="--rate 100/s")
    with _locked(project):
        token, facts = _sign(project, tenant, models, seconds, rate, rows_per_day)
    audit.record(project, "tokens issue", asdict(facts))
    return token, facts


def listed(project: Project) -> list[Issued]:
    """Every token that was issued and has not long expired, oldest first."""
    known = {field.name for field in fields(Issued)}
    stored = (read_json(_book(project)) or {}).get("tokens", [])
    return [Issued(**{name: value for name, value in facts.items() if name in known}) for facts in stored]


def revoke(project: Project, name: str) -> list[Issued]:
    """Takes the token with this id, or all of a tenant's, out of force; returns them. Those that are out already stay so.

    Raises:
        UsageError: no token has this id and no tenant this name.
    """
    with _locked(project):
        now, book = int(time.time()), listed(project)
        meant = [facts for facts in book if facts.jti == name] or [facts for facts in book if facts.tenant == name]
        if not meant:
            known = {facts.tenant for facts in book} | {facts.jti for facts in book}
            raise UsageError(f"no token and no tenant {name!r}; {near_miss(name, known)}", hint="headrace tokens list")
        revoked = [replace(facts, revoked=now) for facts in meant if facts.is_in_force(now)]
        changed = {facts.jti: facts for facts in revoked}
        after = [changed.get(facts.jti, facts) for facts in book]
        _publish_revoked(project, after)  # the guard's file first: a kill in between leaves a token refused, not in force
        _write_book(project, after)
    audit.record(project, "tokens revoke", {"name": name, "revoked": sorted(changed)})
    return revoked


def rotate(project: Project) -> str:
    """A new key signs from now on; earlier ones verify until the last token they signed has expired. Returns its id."""
    with _locked(project):
        kid = keys.make(project)
        keys.publish(project, {facts.kid for facts in listed(project) if facts.is_in_force(time.time())})
    audit.record(project, "tokens rotate", {"kid": kid})
    return kid


def prepare(project: Project) -> None:
    """Keys, what replicas need to check tokens, and the operator's own token; made where they are not there yet."""
    operator_token(project)
    with _locked(project):
        keys.publish(project, {facts.kid for facts in listed(project) if facts.is_in_force(time.time())})
        _publish_revoked(project, listed(project))


def operator_token(project: Project) -> str:
    """The token that this house itself calls with: for all models, without limits. Made anew long before it expires."""
    with _locked(project):
        path = project.keys / "operator.token"
        with contextlib.suppress(FileNotFoundError):
            token = path.read_text(encoding="ascii").strip()
            facts = next((f for f in listed(project) if f.jti == _jti(token)), None)
            if facts and facts.revoked is None and time.time() < facts.expires - OPERATOR_SECONDS / 3:
                return token
        token, _ = _sign(project, OPERATOR, ["*"], OPERATOR_SECONDS)
        write_secret(path, token + "\n")
        return token


def delegate(project: Project, jti: str, tenant: str, model: str, seconds: int, rows_per_day: int | None) -> str:
    """A token in the name of one that was issued: of the same id, so that it is refused as soon as that one is revoked.

    It opens one model, for `seconds` from now.
    """
    import jwt

    with _locked(project):
        kid, key = keys.current(project)
    now = int(time.time())
    claims = make_claims(tenant, jti, [model], now, now + seconds, None, rows_per_day)
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid})


def rates(project: Project) -> dict[str, float]:
    """Requests per second of each tenant that has a limit: the highest of its tokens in force; one without lifts it."""
    now = time.time()
    found: dict[str, list[float | None]] = {}
    for facts in listed(project):
        if facts.is_in_force(now):
            found.setdefault(facts.tenant, []).append(facts.rate)
    return {tenant: max(rate for rate in limits if rate is not None) for tenant, limits in found.items() if None not in limits}


def revoked_ids(project: Project) -> list[str]:
    """Ids that are to be refused although their tokens have not expired."""
    return sorted((read_json(project.guard / "revoked.json") or {}).get("revoked", {}))


def parse_seconds(text: str) -> int:
    """`30d`, `12h`, `45m` or `90s` as seconds.

    Raises:
        UsageError: another text.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if not match or int(match[1]) == 0:
        raise UsageError(f"no time span: {text!r}", where="--expires", hint="a number and s, m, h or d, such as 30d or 12h")
    return int(match[1]) * UNITS[match[2]]


def parse_rate(text: str) -> float:
    """`100/s`, `30/m` or `1000/h` as requests per second.

    Raises:
        UsageError: another text.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*/\s*([smhd])", text.strip())
    if not match:
        raise UsageError(f"no rate: {text!r}", where="--rate", hint="a number, / and s, m, h or d, such as 100/s or 30/m")
    return float(match[1]) / UNITS[match[2]]


def rate_text(rate: float) -> str:
    """Requests per second as `parse_rate` reads them, by the shortest time that makes a whole number of them."""
    for unit in "smhd":
        asked = rate * UNITS[unit]
        if asked > 0.5 and abs(asked - round(asked)) < 1e-6 * asked:
            return f"{round(asked)}/{unit}"
    return f"{rate:g}/s"


def parse_rows(text: str) -> int:
    """`1e6`, `1000000` or `1_000_000` as a whole number.

    Raises:
        UsageError: another text, or a part of a row.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e15 or value != int(value):
        raise UsageError(f"no number of rows: {text!r}", where="--rows-per-day", hint="a whole number, such as 50000 or 1e6")
    return int(value)


def _sign(
    project: Project,
    tenant: str,
    models: Sequence[str],
    seconds: int,
    rate: float | None = None,
    rows_per_day: int | None = None,
) -> tuple[str, Issued]:
    import jwt

    kid, key = keys.current(project)
    now = int(time.time())
    facts = Issued(secrets.token_hex(8), tenant, sorted(set(models)), now, now + seconds, kid, rate, rows_per_day)
    claims = make_claims(tenant, facts.jti, facts.models, now, facts.expires, rate, rows_per_day)
    token = jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid})
    if len(token) > LONGEST_TOKEN:
        raise UsageError(f"{len(facts.models)} models are too many for one token", where="--models", hint="--models '*'")
    fresh = [known for known in listed(project) if known.expires + KEPT_SECONDS > now]
    _write_book(project, [*fresh, facts])
    return token, facts


def _require_tenant(tenant: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", tenant):
        hint = "letters, digits, and . _ @ - after the first; at most 64"
        raise UsageError(f"no name for a tenant: {tenant!r}", where="--tenant", hint=hint)


def _publish_revoked(project: Project, book: list[Issued]) -> None:
    """An id is dropped when its token has expired for good."""
    now = time.time()
    before = (read_json(project.guard / "revoked.json") or {}).get("revoked", {})
    found = {**before, **{facts.jti: facts.expires for facts in book if facts.revoked is not None}}
    wanted = {"revoked": {jti: expires for jti, expires in sorted(found.items()) if now < expires + LEEWAY_SECONDS}}
    if read_json(project.guard / "revoked.json") != wanted:
        keys.open_token_keys(project)
        write_json(project.guard / "revoked.json", wanted)


def _book(project: Project) -> Path:
    return project.keys / "tokens.json"


def _write_book(project: Project, book: list[Issued]) -> None:
    write_secret(_book(project), json.dumps({"tokens": [asdict(facts) for facts in book]}, indent=1) + "\n")


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
