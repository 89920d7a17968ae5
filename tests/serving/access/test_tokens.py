"""Tokens: issued, revoked, listed; the token itself is never stored."""

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
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "recipes").mkdir()
    for name in ("digits", "flights"):
        (tmp_path / "recipes" / f"{name}.yaml").touch()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def verifier(project: Project) -> TokenVerifier:
    return TokenVerifier(project.token_keys)


def test_an_issued_token_names_tenant_models_and_limits_and_is_accepted(project: Project) -> None:
    token, facts = tokens.issue(project, "acme", ["flights", "digits", "digits"], HOUR, 2.5, 1000)
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
    caller = verifier(project).verify(token)
    assert (caller.tenant, caller.rows_per_day, caller.may_call("digits"), caller.may_call("zebra")) == (
        "acme",
        1000,
        True,
        False,
    )


def test_secrets_are_readable_by_this_user_only_and_no_token_is_stored(project: Project) -> None:
    token, _ = tokens.issue(project, "acme", ["*"], HOUR)
    tokens.prepare_tokens(project)
    assert stat.S_IMODE(project.keys.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in project.keys.iterdir()} == {0o600}
    signature = token.rpartition(".")[2]
    everything = [path.read_text() for path in project.root.rglob("*") if path.is_file()]
    assert not any(signature in text for text in everything)
    assert all("PRIVATE" not in path.read_text() and '"d"' not in path.read_text() for path in project.token_keys.iterdir())


def test_revoking_by_id_or_tenant_is_final_and_returns_what_it_revoked(project: Project) -> None:
    (first, one), (second, _), (third, _) = (tokens.issue(project, t, ["*"], HOUR) for t in ("acme", "acme", "other"))
    tokens.revoke(project, one.jti)
    with pytest.raises(InvalidToken):
        verifier(project).verify(first)
    assert verifier(project).verify(second).tenant == "acme"
    assert len(tokens.revoke(project, "acme")) == 1
    assert tokens.revoke(project, "acme") == []
    for token in (first, second):
        with pytest.raises(InvalidToken):
            verifier(project).verify(token)
    assert verifier(project).verify(third).tenant == "other"
    with pytest.raises(UsageError, match="did you mean 'other'"):
        tokens.revoke(project, "othr")


def test_expired_tokens_leave_the_lists(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.issue(project, "acme", ["*"], HOUR, rate=5.0)
    tokens.revoke(project, "acme")
    tokens.issue(project, "other", ["*"], HOUR, rate=7.0)
    assert (len(tokens.revoked_ids(project)), tokens.rates(project)) == (1, {"other": 7.0})
    later = time.time() + 2 * HOUR
    monkeypatch.setattr(time, "time", lambda: later)
    tokens.prepare_tokens(project)
    assert (tokens.revoked_ids(project), tokens.rates(project)) == ([], {})
    assert [facts.tenant for facts in tokens.list_tokens(project)][:2] == ["acme", "other"], "the list shows them for a while"


def test_a_tenants_rate_is_the_highest_of_its_tokens_and_one_without_a_limit_removes_it(project: Project) -> None:
    for rate in (5.0, 9.0, 2.0):
        tokens.issue(project, "acme", ["*"], HOUR, rate)
    assert tokens.rates(project) == {"acme": 9.0}
    tokens.issue(project, "acme", ["digits"], HOUR)
    assert tokens.rates(project) == {}


def test_the_operators_token_is_made_once_and_replaced_before_it_expires_or_when_it_was_revoked(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokens.operator_token(project)
    assert tokens.operator_token(project) == first
    assert verifier(project).verify(first).may_call("anything")
    tokens.revoke(project, tokens.OPERATOR)
    second = tokens.operator_token(project)
    assert second != first and verifier(project).verify(second).tenant == tokens.OPERATOR
    late = time.time() + tokens.OPERATOR_SECONDS * 0.7
    monkeypatch.setattr(time, "time", lambda: late)
    assert tokens.operator_token(project) != second


def test_a_token_of_a_role_calls_no_model_unless_models_are_named_too(project: Project) -> None:
    token, facts = tokens.issue(project, "ada", [], HOUR, role="reviewer")
    caller = verifier(project).verify(token)
    assert (caller.tenant, caller.role, caller.models, facts.role) == ("ada", "reviewer", frozenset(), "reviewer")
    assert not caller.may_call("digits")
    both, _ = tokens.issue(project, "bob", ["digits"], HOUR, role="viewer")
    assert verifier(project).verify(both).role == "viewer" and verifier(project).verify(both).may_call("digits")
    assert verifier(project).verify(tokens.issue(project, "acme", ["*"], HOUR)[0]).role is None
    assert verifier(project).verify(tokens.operator_token(project)).role == "operator"
    with pytest.raises(UsageError, match="at least one model, or a role"):
        tokens.issue(project, "acme", [], HOUR)
    with pytest.raises(UsageError, match="cannot be issued for the role 'operator'"):
        tokens.issue(project, "eve", ["*"], HOUR, role="operator")


def test_a_token_of_a_role_does_not_lift_the_rate_limit_of_a_tenant_of_its_name(project: Project) -> None:
    tokens.issue(project, "acme", ["*"], HOUR, rate=5.0)
    tokens.issue(project, "acme", [], HOUR, role="viewer")
    assert tokens.rates(project) == {"acme": 5.0}


def test_tokens_of_earlier_versions_stay_valid_and_the_operators_is_replaced_by_one_with_its_role(project: Project) -> None:
    token, _ = tokens.issue(project, "acme", ["digits"], HOUR)
    operator, _ = tokens._sign(project, tokens.OPERATOR, ["*"], tokens.OPERATOR_SECONDS)
    (project.keys / "operator.token").write_text(operator)
    path = project.keys / "tokens.json"
    stored = json.loads(path.read_text())["tokens"]
    path.write_text(json.dumps({"tokens": [{k: v for k, v in facts.items() if k != "role"} for facts in stored]}))
    assert [facts.role for facts in tokens.list_tokens(project)] == [None, None]
    assert verifier(project).verify(token).role is None
    new = tokens.operator_token(project)
    assert new != operator and tokens.operator_token(project) == new
    assert verifier(project).verify(new).role == "operator"
    assert verifier(project).verify(operator).role is None and verifier(project).verify(operator).has_all_models


def test_after_a_rotation_both_keys_verify_until_the_old_tokens_expire(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, facts = tokens.issue(project, "acme", ["*"], HOUR)
    kid = tokens.rotate(project)
    new, _ = tokens.issue(project, "acme", ["*"], 3 * HOUR)
    assert jwt.get_unverified_header(new)["kid"] == kid != facts.kid
    assert verifier(project).verify(old) and verifier(project).verify(new)
    later = time.time() + 2 * HOUR
    monkeypatch.setattr(time, "time", lambda: later)
    tokens.prepare_tokens(project)
    assert [key["kid"] for key in keys.public_keys(project)] == [kid]


def _issue_many(root: Path, tenant: str) -> None:
    for _ in range(10):
        tokens.issue(Project(root), tenant, ["*"], HOUR)


def test_two_processes_at_once_agree_on_one_key_and_lose_no_token(project: Project) -> None:
    context = get_context("spawn")
    writers = [context.Process(target=_issue_many, args=(project.root, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(tokens.list_tokens(project)) == 20
    assert len({facts.kid for facts in tokens.list_tokens(project)}) == len(keys.public_keys(project)) == 1


def test_the_error_for_a_damaged_key_says_how_to_repair_it(project: Project) -> None:
    tokens.prepare_tokens(project)
    (project.keys / "signing.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(HeadraceError, match="not an Ed25519 key") as caught:
        tokens.issue(project, "acme", ["*"], HOUR)
    assert "rm " in str(caught.value.hint)


def test_a_delegated_token_opens_one_model_and_is_revoked_with_the_original(project: Project) -> None:
    _, facts = tokens.issue(project, "acme", ["*"], HOUR, rows_per_day=1000)
    token = tokens.delegate(project, facts.jti, "acme", "digits", facts.rows_per_day)
    caller = verifier(project).verify(token)
    assert (caller.tenant, caller.jti, caller.models, caller.rows_per_day) == ("acme", facts.jti, frozenset({"digits"}), 1000)
    assert caller.expires_at == pytest.approx(time.time() + 600, abs=2)
    tokens.revoke(project, facts.jti)
    with pytest.raises(InvalidToken):
        verifier(project).verify(token)


def test_the_key_folder_of_an_earlier_version_keeps_its_place_so_that_its_replicas_see_revocations(project: Project) -> None:
    earlier = project.state / "guard"
    earlier.mkdir(parents=True)
    token, facts = tokens.issue(project, "acme", ["*"], HOUR)
    assert TokenVerifier(earlier).verify(token).tenant == "acme"
    tokens.revoke(project, facts.jti)
    assert not earlier.is_symlink() and project.token_keys.resolve() == earlier.resolve()
    with pytest.raises(InvalidToken):
        TokenVerifier(earlier).verify(token)


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", 100.0), ("30/m", 0.5), ("3600/h", 1.0), ("86400/d", 1.0), ("2.5 / s", 2.5)]
)
def test_rates_are_read_per_second(text: str, rate: float) -> None:
    assert tokens.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["100/s", "5/m", "90/m", "7/h", "1/d", "1000000/s"])
def test_rates_are_shown_in_the_unit_of_the_option(text: str) -> None:
    assert tokens.rate_text(tokens.parse_rate(text)) == text


def test_a_rate_that_is_not_a_whole_number_in_any_unit_is_shown_per_second() -> None:
    assert tokens.rate_text(tokens.parse_rate("0.000123/s")) == "0.000123/s"


@pytest.mark.parametrize("text", ["100", "-1/s", "1/y", "1e3/s", "s", "", "nan/s", "1/ss"])
def test_other_texts_are_refused_as_rates(text: str) -> None:
    with pytest.raises(UsageError, match="not a rate"):
        tokens.parse_rate(text)


def test_spans_and_rows_are_read_and_the_rest_refused(project: Project) -> None:
    assert [tokens.parse_seconds(text) for text in ("30d", "12h", "45m", "90s")] == [2_592_000, 43_200, 2_700, 90]
    assert [tokens.parse_count(text, "--rows-per-day") for text in ("1e6", "1000", "1_000")] == [1_000_000, 1000, 1000]
    for text in ("30", "d", "0d", "-1d", "1w", ""):
        with pytest.raises(UsageError, match="not a time span"):
            tokens.parse_seconds(text)
    for text in ("0", "-5", "1.5", "nan", "inf", "many", ""):
        with pytest.raises(UsageError, match="not a number of rows"):
            tokens.parse_count(text, "--rows-per-day")
        with pytest.raises(UsageError, match="not a number of tokens"):
            tokens.parse_count(text, "--tokens-per-minute")
    for tenant in ("", "a b", "ä", "x" * 65, "-x", "a\n"):
        with pytest.raises(UsageError, match="invalid tenant name"):
            tokens.issue(project, tenant, ["*"], HOUR)
    for rate in (0.0, 1e-9, 2e6, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="a rate is at least"):
            tokens.issue(project, "acme", ["*"], HOUR, rate)
    with pytest.raises(UsageError, match="too many for one token"):
        tokens.issue(project, "acme", [f"model-{i}" for i in range(1000)], HOUR)
    assert tokens.list_tokens(project) == []
    with pytest.raises(UsageError, match="366 days"):
        tokens.issue(project, "acme", ["*"], 367 * tokens.DAY)


# -- the commands


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["tokens", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_issue_list_revoke_and_are_audited(project: Project) -> None:
    limits = ["--rate", "100/s", "--rows-per-day", "1e6", "--expires", "30d"]
    issued = json.loads(run("issue", "--tenant", "acme", "--models", "digits, flights", *limits, "--json"))
    assert verifier(project).verify(issued["token"]).models == {"digits", "flights"}
    (row,) = json.loads(run("list", "--json"))
    assert (row["id"], row["state"], row["rate"], row["rows_per_day"]) == (issued["id"], "active", "100/s", 1_000_000)
    assert row["role"] is None and "tokens per day" not in run("list")
    assert "is revoked" in run("revoke", issued["id"])
    assert "revoked" in run("list")
    assert run("show").strip() == tokens.operator_token(project)
    assert [entry.act for entry in audit.entries(project)] == ["tokens issue", "tokens revoke"]
    assert issued["token"] not in project.audit_log.read_text()


def test_limits_in_tokens_are_in_the_token_its_list_and_its_delegate(project: Project) -> None:
    limits = ["--tokens-per-day", "1e6", "--tokens-per-minute", "20_000"]
    issued = json.loads(run("issue", "--tenant", "acme", "--models", "digits", *limits, "--json"))
    caller = verifier(project).verify(issued["token"])
    assert (caller.tokens_per_day, caller.tokens_per_minute, caller.limits_tokens) == (1_000_000, 20_000, True)
    assert (issued["tokens_per_day"], issued["tokens_per_minute"]) == (1_000_000, 20_000)
    assert "tokens per minute" in run("list") and "20000" in run("list")
    delegated = verifier(project).verify(tokens.delegate(project, caller.jti, "acme", "digits", None, 1_000_000, 20_000))
    assert (delegated.tokens_per_day, delegated.tokens_per_minute) == (1_000_000, 20_000)
    assert not verifier(project).verify(tokens.operator_token(project)).limits_tokens


def test_the_commands_issue_a_token_of_a_role(project: Project) -> None:
    issued = json.loads(run("issue", "--tenant", "ada", "--role", "reviewer", "--json"))
    assert (issued["role"], issued["models"]) == ("reviewer", [])
    assert verifier(project).verify(issued["token"]).role == "reviewer"
    assert [(row["tenant"], row["role"]) for row in json.loads(run("list", "--json"))] == [("ada", "reviewer")]
    assert audit.entries(project)[-1].facts["role"] == "reviewer"
    refused = CliRunner().invoke(cli, ["tokens", "issue", "--tenant", "eve", "--role", "operator", "--models", "*"])
    assert refused.exit_code == 2


def test_an_unknown_model_is_refused_with_a_suggestion(project: Project) -> None:
    with pytest.raises(UsageError, match="unknown model 'digts'; did you mean 'digits'"):
        run("issue", "--tenant", "acme", "--models", "digts")
    assert tokens.list_tokens(project) == []


@pytest.mark.parametrize("tenant", ["operator", "Operator", "open"])
def test_a_name_that_headrace_uses_itself_is_not_issued(project: Project, tenant: str) -> None:
    with pytest.raises(UsageError, match="is reserved"):
        tokens.issue(project, tenant, ["*"], HOUR)
