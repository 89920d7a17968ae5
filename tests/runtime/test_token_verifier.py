"""Which tokens open what, with real keys and real files."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headrace.runtime import token_verifier as guard_module
from headrace.runtime.token_verifier import InvalidToken, TokenVerifier, bearer
from tests.passes import Passes


@pytest.fixture
def passes(tmp_path: Path) -> Passes:
    return Passes(tmp_path / "guard")


@pytest.fixture
def guard(passes: Passes) -> TokenVerifier:
    return TokenVerifier(passes.folder)


@pytest.fixture
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "RELOAD_SECONDS", 0.0)


def test_a_token_says_who_calls_and_what_it_opens(passes: Passes, guard: TokenVerifier) -> None:
    caller = guard.verify(passes.token("acme", ("digits", "flights"), rows_per_day=1000, jti="t1"))
    assert (caller.tenant, caller.jti, caller.rows_per_day) == ("acme", "t1", 1000)
    assert [caller.may_call(name) for name in ("digits", "flights", "trips")] == [True, True, False]
    assert not caller.has_all_models


def test_a_star_opens_every_model_and_no_models_open_none(passes: Passes, guard: TokenVerifier) -> None:
    assert guard.verify(passes.token(models=("*",))).may_call("anything")
    assert not guard.verify(passes.token(models=())).may_call("digits")


def test_without_a_folder_everybody_is_let_in() -> None:
    caller = TokenVerifier(None).verify("")
    assert (caller.tenant, caller.may_call("digits"), caller.rows_per_day) == ("open", True, None)


def _signed_by_another(passes: Passes) -> str:
    other = Passes(passes.folder.parent / "other", passes.kid)
    return other.token()


def _with_another_payload(passes: Passes) -> str:
    head, _, signature = passes.token("acme").split(".")
    claims = {**jwt.decode(passes.token("acme"), options={"verify_signature": False}), "sub": "operator"}
    return ".".join([head, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("="), signature])


def _unsigned(passes: Passes) -> str:
    claims = jwt.decode(passes.token(), options={"verify_signature": False})
    return jwt.encode(claims, "", "none", headers={"kid": passes.kid})


def _by_the_public_key_as_a_secret(passes: Passes) -> str:
    claims = jwt.decode(passes.token(), options={"verify_signature": False})
    return jwt.encode(claims, base64.urlsafe_b64decode(passes.jwk()["x"] + "="), "HS256", headers={"kid": passes.kid})


def _by_the_key_of_the_rfc(passes: Passes) -> str:
    """The key that refusals are slowed down with is known to everybody."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    claims = jwt.decode(passes.token(), options={"verify_signature": False})
    return jwt.encode(claims, Ed25519PrivateKey.from_private_bytes(secret), "EdDSA", headers={"kid": "unknown"})


NOW = int(time.time())
REFUSED: dict[str, Any] = {
    "nothing": lambda passes: "",
    "no token": lambda passes: "letmein",
    "three empty parts": lambda passes: "..",
    "not base64": lambda passes: "é.é.é",
    "longer than any": lambda passes: passes.token() + "A" * 9000,
    "another's signature": _signed_by_another,
    "another payload": _with_another_payload,
    "unsigned": _unsigned,
    "a secret in place of a key": _by_the_public_key_as_a_secret,
    "a key that everybody knows": _by_the_key_of_the_rfc,
    "an unknown key": lambda passes: Passes(passes.folder.parent / "other", "k2").token(),
    "expired": lambda passes: passes.token(exp=NOW - 61),
    "of the future": lambda passes: passes.token(iat=NOW + 3600),
    "another issuer": lambda passes: passes.token(iss="elsewhere"),
    "no end": lambda passes: passes.token(exp=None),
    "no name": lambda passes: passes.token(jti=None),
    "no tenant": lambda passes: passes.token(""),
    "models that are no names": lambda passes: passes.token(models=(1, 2)),
    "a quota that is no number": lambda passes: passes.token(rows_per_day="many"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_no_other_token_is_let_in(passes: Passes, guard: TokenVerifier, reason: str) -> None:
    with pytest.raises(InvalidToken) as refusal:
        guard.verify(REFUSED[reason](passes))
    assert str(refusal.value) == ""  # nobody learns why


@pytest.mark.parametrize("reason", ["nothing", "unsigned", "another's signature", "expired", "an unknown key"])
def test_every_refusal_costs_one_signature(
    passes: Passes, guard: TokenVerifier, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    token = REFUSED[reason](passes)
    looked_at: list[str] = []
    monkeypatch.setattr(guard_module, "_DUMMY_KEY", _Counting(guard_module._DUMMY_KEY, looked_at))
    guard._reload()
    guard._keys = {kid: _Counting(key, looked_at) for kid, key in guard._keys.items()}
    monkeypatch.setattr(jwt, "decode", _decoding(looked_at))
    with pytest.raises(InvalidToken):
        guard.verify(token)
    assert len(looked_at) == 1


class _Counting:
    """A public key that counts what it verifies."""

    def __init__(self, key: Any, looked_at: list[str]) -> None:
        self.key = key
        self._looked_at = looked_at

    def verify(self, *arguments: Any) -> None:
        self._looked_at.append("signature")
        self.key.verify(*arguments)


def _decoding(looked_at: list[str]) -> Any:
    decode = jwt.decode

    def counted(token: str, key: _Counting, *arguments: Any, **options: Any) -> Any:
        looked_at.append("signature")
        return decode(token, key.key, *arguments, **options)

    return counted


def test_clocks_may_differ_by_a_minute(passes: Passes, guard: TokenVerifier) -> None:
    now = int(time.time())
    assert guard.verify(passes.token(exp=now - 50))
    assert guard.verify(passes.token(iat=now + 50))


def test_a_token_ends_though_it_was_verified_before(
    passes: Passes, guard: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = passes.token()
    guard.verify(token)
    later = time.time() + 700
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(InvalidToken):
        guard.verify(token)


@pytest.mark.usefixtures("looks_each_time")
def test_a_revoked_token_is_refused_though_it_was_verified_before(passes: Passes, guard: TokenVerifier) -> None:
    token, other = passes.token(), passes.token()
    guard.verify(token)
    passes.revoke(token)
    with pytest.raises(InvalidToken):
        guard.verify(token)
    assert guard.verify(other)


@pytest.mark.usefixtures("looks_each_time")
def test_a_key_that_is_taken_away_opens_nothing_any_more(passes: Passes, guard: TokenVerifier) -> None:
    token = passes.token()
    guard.verify(token)
    newer = Passes(passes.folder, "k2")
    with pytest.raises(InvalidToken):
        guard.verify(token)
    assert guard.verify(newer.token())


@pytest.mark.usefixtures("looks_each_time")
@pytest.mark.parametrize("name", ["jwks.json", "revoked.json"])
def test_a_file_that_cannot_be_read_leaves_in_force_what_was_read_last(passes: Passes, guard: TokenVerifier, name: str) -> None:
    revoked, token = passes.token(), passes.token()
    passes.revoke(revoked)
    guard.verify(token)
    (passes.folder / name).write_text('{"keys": [')
    assert guard.verify(token)
    with pytest.raises(InvalidToken):
        guard.verify(revoked)


@pytest.mark.parametrize(("name", "content"), [("jwks.json", "{}"), ("revoked.json", "nonsense")])
def test_nobody_is_let_in_before_the_files_can_be_read(passes: Passes, name: str, content: str) -> None:
    (passes.folder / name).write_text(content)
    with pytest.raises(InvalidToken):
        TokenVerifier(passes.folder).verify(passes.token())


def test_verified_tokens_are_bounded(passes: Passes, guard: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "MAX_VERIFIED", 3)
    for _ in range(5):
        guard.verify(passes.token())
    assert len(guard._verified) == 3


@pytest.mark.parametrize(
    ("value", "token"), [(b"Bearer a.b.c", "a.b.c"), (b"bearer  a ", "a"), (b"Basic abc", ""), (b"", ""), (b"Bearer", "")]
)
def test_a_token_is_read_from_its_header(value: bytes, token: str) -> None:
    assert bearer(value) == token
