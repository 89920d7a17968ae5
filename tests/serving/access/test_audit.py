"""The audit log: who did what, chained, and told by a command."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.runtime.usage import Ledger
from headrace.serving.access import audit


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def test_acts_come_back_in_order_with_who_did_them(house: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    user = getpass.getuser()
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "somebody-else")
    audit.record(house, "scale", {"model": "digits", "replicas": 3})
    audit.record(house, "down", {})
    found = audit.acts(house)
    assert [(act.act, act.by, act.facts) for act in found] == [
        ("scale", user, {"model": "digits", "replicas": 3}),
        ("down", user, {}),
    ]
    done = CliRunner().invoke(cli, ["audit", "-n", "2"])
    assert done.output.splitlines()[0].endswith(f"{user}  scale  model digits  replicas 3")


def test_a_tokens_facts_are_told_as_a_person_reads_them(house: Project) -> None:
    facts = {"tenant": "acme", "models": ["digits", "flights"], "issued": 1795885866, "expires": 1798477866.5}
    audit.record(house, "tokens issue", {**facts, "rate": 5 / 60, "rows_per_day": None})
    (line,) = CliRunner().invoke(cli, ["audit"]).output.splitlines()
    assert line.endswith(
        "tenant acme  models digits, flights  issued 2026-11-28T17:11:06+00:00  expires 2026-12-28T17:11:06+00:00  rate 5/m"
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_changed_or_missing_line_is_found_but_for_the_last_that_nothing_follows(house: Project, number: int) -> None:
    for act in ("up", "tokens issue", "down", "up"):
        audit.record(house, act, {"n": 1})
    lines = house.audit.read_text().splitlines()
    for tampered in (
        [*lines[:number], *lines[number + 1 :]],
        [*lines[:number], lines[number].replace("1}", "2}"), *lines[number + 1 :]],
    ):
        house.audit.write_text("\n".join(tampered) + "\n")
        with pytest.raises(HeadraceError, match="audit log was changed"):
            audit.acts(house)


def test_usage_is_told_by_tenant_model_and_day(house: Project) -> None:
    folder = house.usage / "digits-v1-0000"
    folder.mkdir(parents=True)
    ledger = Ledger(folder)
    ledger.add("acme", "digits", rows=3)
    ledger.add("acme", "digits", rows=4)
    ledger.add("other", "shakespeare", rows=1, tokens=50)
    shown = CliRunner().invoke(cli, ["usage"]).output
    ledger.close()
    words = [line.split() for line in shown.splitlines()]
    assert [line[1:] for line in words[1:]] == [
        ["acme", "digits", "2", "7", "0"],
        ["other", "shakespeare", "1", "1", "50"],
        ["3", "8", "50"],
    ]
    after = CliRunner().invoke(cli, ["usage", "--tenant", "acme"]).output
    assert "acme" in after and "other" not in after
