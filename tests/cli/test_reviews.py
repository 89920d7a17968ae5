"""`headrace approve` and `reject`: in whose name they decide, and what the other commands say about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.errors import HeadraceError, UsageError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal
from headrace.release.reviews import NotAllowed
from headrace.serving.access import audit, tokens
from headrace.tracking.registry import Version
from tests.release.candidates import decide, finish, new_recipe, register


@pytest.fixture
def waiting(built: Project, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Version]:
    monkeypatch.chdir(built.root)
    recipe = new_recipe(built, approval="manual")
    version = register(recipe, built)
    assert decide(recipe, version, built).result == "awaiting-approval"
    return recipe, version


def run(*arguments: str, token: str | None = None, **variables: str) -> str:
    environment = {"HEADRACE_TOKEN": token, **variables}
    done = CliRunner(env=environment).invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def run_json(*arguments: str, token: str | None = None) -> Any:
    return json.loads(run(*arguments, "--json", token=token))


def test_without_a_token_the_operator_decides_under_the_name_of_the_system_s_user(
    waiting: tuple[Recipe, Version], built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, version = waiting
    for variable in ("LOGNAME", "USER"):
        monkeypatch.setenv(variable, "somebody-else")
    done = run_json("approve", version.name)
    assert (done["by"], done["role"], done["outcome"]) == (audit.user(), "operator", "approved")
    assert decide(recipe, version, built).result == "promote"
    assert "lifts the rejection" in run("reject", version.name, "--why", "on second thought")
    assert decide(recipe, version, built).result == "rejected"


def test_with_a_token_its_holder_decides(waiting: tuple[Recipe, Version], built: Project) -> None:
    recipe, version = waiting
    ada, facts = tokens.issue(built, "ada", [], 3600, role="reviewer")
    assert f"{version.name} is rejected by ada (reviewer)" in run("reject", version.name, "--why", "slow", token=ada)
    entry = journal.entries(built, recipe.name)[-1]
    assert (entry.event, entry.facts["by"], entry.facts["token"]) == ("rejected", "ada", facts.jti)


def test_other_tokens_decide_nothing(waiting: tuple[Recipe, Version], built: Project) -> None:
    recipe, version = waiting
    revoked, facts = tokens.issue(built, "ada", [], 3600, role="reviewer")
    tokens.revoke(built, facts.jti)
    for token in (revoked, "nonsense"):
        with pytest.raises(UsageError, match="the token is not valid in this project"):
            run("approve", version.name, token=token)
    for role in ("viewer", None):
        token = tokens.issue(built, "eve", [] if role else ["*"], 3600, role=role)[0]
        with pytest.raises(NotAllowed, match="takes the role reviewer or operator"):
            run("approve", version.name, token=token)
    assert journal.entries(built, recipe.name)[-1].event == "awaiting-approval"


def test_a_reason_is_one_printable_line(waiting: tuple[Recipe, Version]) -> None:
    _, version = waiting
    for why in ("two\nlines", "\x1b[2J", "x" * 1001, " "):
        with pytest.raises(UsageError, match="expected one line of at most 1000 printable characters"):
            run("reject", version.name, "--why", why)
    assert CliRunner().invoke(cli, ["reject", version.name]).exit_code == 2, "a rejection needs a reason"


def test_another_machine_gets_the_token_of_the_environment_and_never_the_operators(project: Project) -> None:
    for where in (("--address", "http://127.0.0.1:9"), ()):
        variables = {} if where else {"HEADRACE_ADDRESS": "http://127.0.0.1:9"}
        with pytest.raises(UsageError, match=r"HEADRACE_TOKEN|a token is needed for http://127\.0\.0\.1:9"):
            run("approve", "digits@2", *where, **variables)
    with pytest.raises(UsageError, match="expected a version such as digits@4"):
        run("approve", "digits", "--address", "http://127.0.0.1:9", token="t")
    with pytest.raises(HeadraceError, match="does not respond"):
        run("approve", "--address", "http://127.0.0.1:9", token="t")
    assert not project.keys.exists()


def test_candidates_history_status_and_trace_show_who_decided(waiting: tuple[Recipe, Version], built: Project) -> None:
    recipe, version = waiting
    assert f"{version.name}  waits for approval since" in run("approve")
    assert f"headrace approve {version.name}; or: headrace reject {version.name}" in run("approve")
    ada, _ = tokens.issue(built, "ada", [], 3600, role="reviewer")
    run("approve", version.name, "--why", "better", token=ada)
    (listed,) = (one for one in run_json("approve") if one["model"] == recipe.name)
    assert (listed["state"], listed["review"]["by"], listed["review"]["why"]) == ("approved", "ada", "better")
    found = run_json("status")
    assert listed in found["candidates"]
    assert f"{version.name} is approved by ada (reviewer): better" in run("status")
    trace = {link["link"]: link["id"] for link in run_json("trace", version.name)["chain"]}
    assert trace["approved"].startswith("by ada (reviewer) at ")

    finish(recipe, decide(recipe, version, built), built)
    journal.record(built, "approved", recipe.name, "7", {"by": "eve"})
    shown = run("history", recipe.name)
    assert shown.count("approved by ada (reviewer): better") == 2, "the review, and the release that it allowed"
    assert "approved by eve\n    does not count: it is not signed" in shown
    assert [entry.get("not_counted") for entry in run_json("history", recipe.name)] == [None, None, None, "it is not signed"]
