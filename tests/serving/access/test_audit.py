"""The audit log: who did what, chained by hashes, and shown by a command."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.runtime.usage import UsageWriter
from headrace.serving.access import audit


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def test_entries_come_back_in_order_with_who_did_them(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    user = getpass.getuser()
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "somebody-else")
    audit.record(project, "scale", {"model": "digits", "replicas": 3})
    audit.record(project, "down", {})
    found = audit.entries(project)
    assert [(entry.act, entry.by, entry.facts) for entry in found] == [
        ("scale", user, {"model": "digits", "replicas": 3}),
        ("down", user, {}),
    ]
    done = CliRunner().invoke(cli, ["audit", "-n", "2"])
    assert done.output.splitlines()[0].endswith(f"{user}  scale  model digits  replicas 3")


def test_a_tokens_facts_are_shown_in_readable_units(project: Project) -> None:
    facts = {"tenant": "acme", "models": ["digits", "flights"], "issued": 1795885866, "expires": 1798477866.5}
    audit.record(project, "tokens issue", {**facts, "rate": 5 / 60, "rows_per_day": None})
    (line,) = CliRunner().invoke(cli, ["audit"]).output.splitlines()
    assert line.endswith(
        "tenant acme  models digits, flights  issued 2026-11-28T17:11:06+00:00  expires 2026-12-28T17:11:06+00:00  rate 5/m"
    )


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_changed_or_missing_line_is_found_also_the_last(project: Project, number: int) -> None:
    for act in ("up", "tokens issue", "down", "up"):
        audit.record(project, act, {"n": 1})
    lines = project.audit_log.read_text().splitlines()
    for tampered in (
        [*lines[:number], *lines[number + 1 :]],
        [*lines[:number], lines[number].replace("1}", "2}"), *lines[number + 1 :]],
    ):
        project.audit_log.write_text("\n".join(tampered) + "\n")
        with pytest.raises(HeadraceError, match="audit log was modified"):
            audit.entries(project)


def test_usage_is_shown_by_tenant_model_and_day(project: Project) -> None:
    folder = project.usage / "digits-v1-0000"
    folder.mkdir(parents=True)
    usage = UsageWriter(folder)
    usage.add("acme", "digits", rows=3)
    usage.add("acme", "digits", rows=4)
    usage.add("other", "shakespeare", rows=1, tokens=50, prompt_tokens=20)
    shown = CliRunner().invoke(cli, ["usage"]).output
    usage.close()
    words = [line.split() for line in shown.splitlines()]
    assert [line[1:] for line in words[1:]] == [
        ["acme", "digits", "2", "7", "0", "0"],
        ["other", "shakespeare", "1", "1", "50", "20"],
        ["3", "8", "50", "20"],
    ]
    after = CliRunner().invoke(cli, ["usage", "--tenant", "acme"]).output
    assert "acme" in after and "other" not in after
