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

from headrace.runtime import token_verifier
from headrace.runtime.token_verifier import InvalidToken, TokenVerifier, bearer
from tests.token_issuer import TokenIssuer


@pytest.fixture
def issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path / "token-keys")


@pytest.fixture
def verifier(issuer: TokenIssuer) -> TokenVerifier:
    return TokenVerifier(issuer.folder)


@pytest.fixture
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_verifier, "RELOAD_SECONDS", 0.0)


def test_a_token_names_tenant_and_models(issuer: TokenIssuer, verifier: TokenVerifier) -> None:
    caller = verifier.verify(issuer.token("acme", ("digits", "flights"), rows_per_day=1000, jti="t1"))
    assert (caller.tenant, caller.jti, caller.rows_per_day) == ("acme", "t1", 1000)
    assert [caller.may_call(name) for name in ("digits", "flights", "trips")] == [True, True, False]
    assert not caller.has_all_models


def test_a_star_allows_all_models_and_an_empty_list_none(issuer: TokenIssuer, verifier: TokenVerifier) -> None:
    assert verifier.verify(issuer.token(models=("*",))).may_call("anything")
    assert not verifier.verify(issuer.token(models=())).may_call("digits")


@pytest.mark.parametrize("role", ["reviewer", "viewer", "operator", None])
def test_a_token_may_have_a_role(issuer: TokenIssuer, verifier: TokenVerifier, role: str | None) -> None:
    assert verifier.verify(issuer.token("ada", (), role=role)).role == role


@pytest.mark.parametrize("role", ["admin", "", 1, ["operator"]])
def test_a_token_with_another_role_is_refused(issuer: TokenIssuer, verifier: TokenVerifier, role: object) -> None:
    with pytest.raises(InvalidToken):
        verifier.verify(issuer.token("ada", (), role=role))


def test_without_a_key_folder_access_is_open() -> None:
    caller = TokenVerifier(None).verify("")
    assert (caller.tenant, caller.may_call("digits"), caller.rows_per_day) == ("open", True, None)


def _signed_by_another(issuer: TokenIssuer) -> str:
    other = TokenIssuer(issuer.folder.parent / "other", issuer.kid)
    return other.token()


def _with_another_payload(issuer: TokenIssuer) -> str:
    head, _, signature = issuer.token("acme").split(".")
    claims = {**jwt.decode(issuer.token("acme"), options={"verify_signature": False}), "sub": "operator"}
    return ".".join([head, base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("="), signature])


def _unsigned(issuer: TokenIssuer) -> str:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    return jwt.encode(claims, "", "none", headers={"kid": issuer.kid})


def _by_the_public_key_as_a_secret(issuer: TokenIssuer) -> str:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    return jwt.encode(claims, base64.urlsafe_b64decode(issuer.jwk()["x"] + "="), "HS256", headers={"kid": issuer.kid})


def _by_the_key_of_the_rfc(issuer: TokenIssuer) -> str:
    """The key that refusals are slowed down with is known to everybody."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    return jwt.encode(claims, Ed25519PrivateKey.from_private_bytes(secret), "EdDSA", headers={"kid": "unknown"})


NOW = int(time.time())
REFUSED: dict[str, Any] = {
    "nothing": lambda issuer: "",
    "no token": lambda issuer: "letmein",
    "three empty parts": lambda issuer: "..",
    "not base64": lambda issuer: "é.é.é",
    "longer than any": lambda issuer: issuer.token() + "A" * 9000,
    "another's signature": _signed_by_another,
    "another payload": _with_another_payload,
    "unsigned": _unsigned,
    "a secret in place of a key": _by_the_public_key_as_a_secret,
    "a key that everybody knows": _by_the_key_of_the_rfc,
    "an unknown key": lambda issuer: TokenIssuer(issuer.folder.parent / "other", "k2").token(),
    "expired": lambda issuer: issuer.token(exp=NOW - 61),
    "of the future": lambda issuer: issuer.token(iat=NOW + 3600),
    "another issuer": lambda issuer: issuer.token(iss="elsewhere"),
    "no end": lambda issuer: issuer.token(exp=None),
    "no name": lambda issuer: issuer.token(jti=None),
    "no tenant": lambda issuer: issuer.token(""),
    "models that are not names": lambda issuer: issuer.token(models=(1, 2)),
    "a quota in words": lambda issuer: issuer.token(rows_per_day="many"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_forged_tokens_are_refused(issuer: TokenIssuer, verifier: TokenVerifier, reason: str) -> None:
    with pytest.raises(InvalidToken) as refusal:
        verifier.verify(REFUSED[reason](issuer))
    assert str(refusal.value) == ""  # nobody learns why


@pytest.mark.parametrize("reason", ["nothing", "unsigned", "another's signature", "expired", "an unknown key"])
def test_each_refusal_costs_one_signature_check(
    issuer: TokenIssuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    token = REFUSED[reason](issuer)
    looked_at: list[str] = []
    monkeypatch.setattr(token_verifier, "_DUMMY_KEY", _Counting(token_verifier._DUMMY_KEY, looked_at))
    verifier._reload()
    verifier._keys = {kid: _Counting(key, looked_at) for kid, key in verifier._keys.items()}
    monkeypatch.setattr(jwt, "decode", _decoding(looked_at))
    with pytest.raises(InvalidToken):
        verifier.verify(token)
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


def test_clocks_may_differ_by_a_minute(issuer: TokenIssuer, verifier: TokenVerifier) -> None:
    now = int(time.time())
    assert verifier.verify(issuer.token(exp=now - 50))
    assert verifier.verify(issuer.token(iat=now + 50))


def test_a_verified_token_still_expires(issuer: TokenIssuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    token = issuer.token()
    verifier.verify(token)
    later = time.time() + 700
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(InvalidToken):
        verifier.verify(token)


@pytest.mark.usefixtures("looks_each_time")
def test_a_verified_token_is_refused_once_revoked(issuer: TokenIssuer, verifier: TokenVerifier) -> None:
    token, other = issuer.token(), issuer.token()
    verifier.verify(token)
    issuer.revoke(token)
    with pytest.raises(InvalidToken):
        verifier.verify(token)
    assert verifier.verify(other)


@pytest.mark.usefixtures("looks_each_time")
def test_tokens_of_a_removed_key_are_refused(issuer: TokenIssuer, verifier: TokenVerifier) -> None:
    token = issuer.token()
    verifier.verify(token)
    newer = TokenIssuer(issuer.folder, "k2")
    with pytest.raises(InvalidToken):
        verifier.verify(token)
    assert verifier.verify(newer.token())


@pytest.mark.usefixtures("looks_each_time")
@pytest.mark.parametrize("name", ["jwks.json", "revoked.json"])
def test_an_unreadable_file_keeps_the_last_read_state(issuer: TokenIssuer, verifier: TokenVerifier, name: str) -> None:
    revoked, token = issuer.token(), issuer.token()
    issuer.revoke(revoked)
    verifier.verify(token)
    (issuer.folder / name).write_text('{"keys": [')
    assert verifier.verify(token)
    with pytest.raises(InvalidToken):
        verifier.verify(revoked)


@pytest.mark.parametrize(("name", "content"), [("jwks.json", "{}"), ("revoked.json", "nonsense")])
def test_access_is_refused_until_the_files_can_be_read(issuer: TokenIssuer, name: str, content: str) -> None:
    (issuer.folder / name).write_text(content)
    with pytest.raises(InvalidToken):
        TokenVerifier(issuer.folder).verify(issuer.token())


@pytest.mark.usefixtures("looks_each_time")
def test_a_missing_list_of_revoked_tokens_lets_none_of_them_in(issuer: TokenIssuer, verifier: TokenVerifier) -> None:
    revoked, token = issuer.token(), issuer.token()
    issuer.revoke(revoked)
    verifier.verify(token)
    (issuer.folder / "revoked.json").unlink()
    assert verifier.verify(token), "the last list stays in force"
    for new in (verifier, TokenVerifier(issuer.folder)):
        with pytest.raises(InvalidToken):
            new.verify(revoked)


def test_verified_tokens_are_bounded(issuer: TokenIssuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_verifier, "MAX_VERIFIED", 3)
    for _ in range(5):
        verifier.verify(issuer.token())
    assert len(verifier._verified) == 3


@pytest.mark.parametrize(
    ("value", "token"), [(b"Bearer a.b.c", "a.b.c"), (b"bearer  a ", "a"), (b"Basic abc", ""), (b"", ""), (b"Bearer", "")]
)
def test_a_token_is_read_from_its_header(value: bytes, token: str) -> None:
    assert bearer(value) == token
