"""Tokens: made once, whole after anything, and never kept."""

from __future__ import annotations

import json
import stat
import time
from multiprocessing import get_context
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.errors import HeadraceError, UsageError
from headrace.project import Project
from headrace.runtime.token_verifier import InvalidToken, TokenVerifier
from headrace.serving.access import audit, keys, tokens

HOUR = 3600


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "recipes").mkdir()
    for name in ("digits", "flights"):
        (tmp_path / "recipes" / f"{name}.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def guard(house: Project) -> TokenVerifier:
    return TokenVerifier(house.guard)


def test_an_issued_token_says_who_and_what_and_replicas_believe_it(house: Project) -> None:
    token, facts = tokens.issue(house, "acme", ["flights", "digits", "digits"], HOUR, 2.5, 1000)
    claims = jwt.decode(token, options={"verify_signature": False})
    now = int(time.time())
    assert claims.pop("iat") in (now, now - 1)
    assert claims == {
        "iss": "headrace",
        "sub": "acme",
        "jti": facts.jti,
        "exp": facts.issued + HOUR,
        "models": ["digits", "flights"],
        "rate": 2.5,
        "rows_per_day": 1000,
    }
    caller = guard(house).check(token)
    assert (caller.tenant, caller.rows_per_day, caller.may("digits"), caller.may("zebra")) == ("acme", 1000, True, False)


def test_secrets_are_for_this_user_alone_and_no_token_is_kept(house: Project) -> None:
    token, _ = tokens.issue(house, "acme", ["*"], HOUR)
    tokens.prepare(house)
    assert stat.S_IMODE(house.keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in house.keys.iterdir()} == {0o600}
    signature = token.rpartition(".")[2]
    everything = [path.read_text() for path in house.root.rglob("*") if path.is_file()]
    assert not any(signature in text for text in everything)
    assert all("PRIVATE" not in path.read_text() and '"d"' not in path.read_text() for path in house.guard.iterdir())


def test_revoking_by_id_or_tenant_is_final_and_says_what_it_did(house: Project) -> None:
    (first, one), (second, _), (third, _) = (tokens.issue(house, t, ["*"], HOUR) for t in ("acme", "acme", "other"))
    tokens.revoke(house, one.jti)
    with pytest.raises(InvalidToken):
        guard(house).check(first)
    assert guard(house).check(second).tenant == "acme"
    assert len(tokens.revoke(house, "acme")) == 1
    assert tokens.revoke(house, "acme") == []
    for token in (first, second):
        with pytest.raises(InvalidToken):
            guard(house).check(token)
    assert guard(house).check(third).tenant == "other"
    with pytest.raises(UsageError, match="did you mean 'other'"):
        tokens.revoke(house, "othr")


def test_what_has_expired_leaves_the_lists(house: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.issue(house, "acme", ["*"], HOUR, rate=5.0)
    tokens.revoke(house, "acme")
    tokens.issue(house, "other", ["*"], HOUR, rate=7.0)
    assert (len(tokens.revoked_ids(house)), tokens.rates(house)) == (1, {"other": 7.0})
    later = time.time() + 2 * HOUR
    monkeypatch.setattr(time, "time", lambda: later)
    tokens.prepare(house)
    assert (tokens.revoked_ids(house), tokens.rates(house)) == ([], {})
    assert [facts.tenant for facts in tokens.listed(house)][:2] == ["acme", "other"], "the list shows them for a while"


def test_a_tenants_rate_is_the_highest_of_its_tokens_and_one_without_lifts_it(house: Project) -> None:
    for rate in (5.0, 9.0, 2.0):
        tokens.issue(house, "acme", ["*"], HOUR, rate)
    assert tokens.rates(house) == {"acme": 9.0}
    tokens.issue(house, "acme", ["digits"], HOUR)
    assert tokens.rates(house) == {}


def test_the_operators_token_is_made_once_and_anew_before_it_expires_or_when_it_was_revoked(
    house: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokens.operator_token(house)
    assert tokens.operator_token(house) == first
    assert guard(house).check(first).may("anything")
    tokens.revoke(house, tokens.OPERATOR)
    second = tokens.operator_token(house)
    assert second != first and guard(house).check(second).tenant == tokens.OPERATOR
    late = time.time() + tokens.OPERATOR_SECONDS * 0.7
    monkeypatch.setattr(time, "time", lambda: late)
    assert tokens.operator_token(house) != second


def test_after_a_rotation_both_keys_verify_until_the_old_ones_tokens_end(
    house: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, facts = tokens.issue(house, "acme", ["*"], HOUR)
    kid = tokens.rotate(house)
    new, _ = tokens.issue(house, "acme", ["*"], 3 * HOUR)
    assert jwt.get_unverified_header(new)["kid"] == kid != facts.kid
    assert guard(house).check(old) and guard(house).check(new)
    later = time.time() + 2 * HOUR
    monkeypatch.setattr(time, "time", lambda: later)
    tokens.prepare(house)
    assert [key["kid"] for key in keys.public_keys(house)] == [kid]


def _issue_many(root: Path, tenant: str) -> None:
    for _ in range(10):
        tokens.issue(Project(root), tenant, ["*"], HOUR)


def test_two_processes_at_once_agree_on_one_key_and_lose_no_token(house: Project) -> None:
    context = get_context("spawn")
    writers = [context.Process(target=_issue_many, args=(house.root, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(tokens.listed(house)) == 20
    assert len({facts.kid for facts in tokens.listed(house)}) == len(keys.public_keys(house)) == 1


def test_a_damaged_key_is_told_with_what_mends_it(house: Project) -> None:
    tokens.prepare(house)
    (house.keys / "signing.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(HeadraceError, match="no Ed25519 key") as caught:
        tokens.issue(house, "acme", ["*"], HOUR)
    assert "rm " in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100.0), ("30/m", 0.5), ("3600/h", 1.0), ("86400/d", 1.0), ("2.5 / s", 2.5)]
)
def test_rates_are_read_per_second(text: str, rate: float) -> None:
    assert tokens.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["100/s", "5/m", "90/m", "7/h", "1/d", "1000000/s"])
def test_rates_are_shown_as_they_were_given(text: str) -> None:
    assert tokens.rate_text(tokens.parse_rate(text)) == text


def test_a_rate_that_is_no_whole_number_of_any_time_is_shown_per_second() -> None:
    assert tokens.rate_text(tokens.parse_rate("0.000123/s")) == "0.000123/s"


@pytest.mark.parametrize("text", ["100", "-1/s", "1/y", "1e3/s", "s", "", "nan/s", "1/ss"])
def test_other_texts_are_no_rates(text: str) -> None:
    with pytest.raises(UsageError, match="no rate"):
        tokens.parse_rate(text)


def test_spans_and_rows_are_read_and_the_rest_refused(house: Project) -> None:
    assert [tokens.parse_seconds(text) for text in ("30d", "12h", "45m", "90s")] == [2_592_000, 43_200, 2_700, 90]
    assert [tokens.parse_rows(text) for text in ("1e6", "1000", "1_000")] == [1_000_000, 1000, 1000]
    for text in ("30", "d", "0d", "-1d", "1w", ""):
        with pytest.raises(UsageError, match="no time span"):
            tokens.parse_seconds(text)
    for text in ("0", "-5", "1.5", "nan", "inf", "many", ""):
        with pytest.raises(UsageError, match="no number of rows"):
            tokens.parse_rows(text)
    for tenant in ("", "a b", "ä", "x" * 65, "-x", "a\n"):
        with pytest.raises(UsageError, match="no name for a tenant"):
            tokens.issue(house, tenant, ["*"], HOUR)
    for rate in (0.0, 1e-9, 2e6, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="a rate is at least"):
            tokens.issue(house, "acme", ["*"], HOUR, rate)
    with pytest.raises(UsageError, match="too many for one token"):
        tokens.issue(house, "acme", [f"model-{i}" for i in range(1000)], HOUR)
    assert tokens.listed(house) == []
    with pytest.raises(UsageError, match="366 days"):
        tokens.issue(house, "acme", ["*"], 367 * tokens.DAY)


# -- the commands


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["tokens", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_issue_list_revoke_and_are_audited(house: Project) -> None:
    limits = ["--rate", "100/s", "--rows-per-day", "1e6", "--expires", "30d"]
    told = json.loads(run("issue", "--tenant", "acme", "--models", "digits, flights", *limits, "--json"))
    assert guard(house).check(told["token"]).models == {"digits", "flights"}
    (row,) = json.loads(run("list", "--json"))
    assert (row["id"], row["state"], row["rate"], row["rows_per_day"]) == (told["id"], "in force", "100/s", 1_000_000)
    assert "is revoked" in run("revoke", told["id"])
    assert "revoked" in run("list")
    assert run("show").strip() == tokens.operator_token(house)
    assert [act.act for act in audit.acts(house)] == ["tokens issue", "tokens revoke"]
    assert told["token"] not in house.audit.read_text()


def test_a_model_that_is_not_there_is_refused_with_the_near_miss(house: Project) -> None:
    with pytest.raises(UsageError, match="no model 'digts'; did you mean 'digits'"):
        run("issue", "--tenant", "acme", "--models", "digts")
    assert tokens.listed(house) == []
