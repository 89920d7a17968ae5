"""What the journal says serves, came before, and was rolled back."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.cli.inspect import history_command
from headrace.cli.summary import print_history
from headrace.project import Project
from headrace.release import history, journal


@pytest.fixture
def book(tmp_path: Path) -> Project:
    return Project(tmp_path)


def write(book: Project, *lines: str) -> list[journal.Entry]:
    """`released 2`, `rolled-back 1 from 2`, `rollout-failed 3 bound`."""
    for line in lines:
        event, version, *rest = line.split()
        facts: dict[str, Any] = {"rolled_back": {"from": rest[1], "by": "ada", "why": "slow"}} if rest[:1] == ["from"] else {}
        if rest == ["bound"]:
            facts = {"bound": "latency", "reason": "too slow"}
        journal.record(book, event, "digits", version, facts)  # type: ignore[arg-type]
    return journal.entries(book, "digits")


def versions(*entries: journal.Entry | None) -> list[str | None]:
    return [entry.version if entry else None for entry in entries]


def test_nothing_serves_before_the_first_release(book: Project) -> None:
    assert versions(history.in_force([]), history.before([])) == [None, None]
    entries = write(book, "refused 1", "awaiting-approval 2")
    assert versions(history.in_force(entries), history.before(entries)) == [None, None]


def test_going_back_twice_goes_back_further(book: Project) -> None:
    entries = write(book, "released 1", "released 2", "released 3")
    assert versions(history.in_force(entries), history.before(entries)) == ["3", "2"]
    entries = write(book, "rolled-back 2 from 3")
    assert versions(history.in_force(entries), history.before(entries)) == ["2", "1"]
    entries = write(book, "rolled-back 1 from 2")
    assert versions(history.in_force(entries), history.before(entries)) == ["1", None]


def test_a_version_is_taken_back_until_it_comes_into_force_again(book: Project) -> None:
    entries = write(book, "released 1", "released 2", "rolled-back 1 from 2", "refused 3")
    line = history.when_rolled_back(entries, "2")
    assert line is not None and history.why_rolled_back(line) == "by ada: slow"
    assert history.when_rolled_back(entries, "1") is None
    assert history.when_rolled_back(write(book, "rolled-back 2 from 1"), "2") is None


def test_a_version_that_left_its_bounds_is_taken_back_and_one_that_could_not_start_is_not(book: Project) -> None:
    entries = write(book, "released 1", "rollout-failed 2", "rollout-failed 3 bound")
    assert history.when_rolled_back(entries, "2") is None
    line = history.when_rolled_back(entries, "3")
    assert line is not None and history.why_rolled_back(line) == "too slow"
    assert history.when_rolled_back(write(book, "released 3"), "3") is None


def test_each_model_has_what_serves_it(book: Project) -> None:
    write(book, "released 1", "released 2", "rolled-back 1 from 2")
    journal.record(book, "released", "flights", "7", {})
    journal.record(book, "refused", "flights", "8", {})
    assert {m: e.version for m, e in history.production(journal.entries(book)).items()} == {"digits": "1", "flights": "7"}


def test_a_step_with_too_few_requests_is_not_shown_as_passed(book: Project, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"error_rate": 0.0, "requests": 0}
    journal.record(book, "rollout-step", "digits", "2", {"step": "canary 5 %", "judged": False, **numbers})
    journal.record(book, "rollout-step", "digits", "2", {"step": "canary 25 %", "judged": True, **numbers, "requests": 1200})
    print_history(journal.entries(book), {})
    printed = capsys.readouterr().out
    assert "canary 5 %: not judged: too few requests (0)" in printed
    assert "canary 25 %: passed; 1,200 requests, errors 0.00%" in printed


def test_what_was_in_production_when_why_and_by_whom_is_in_the_journal_alone(
    book: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release, one that the gate refused, another release, a rollback, and a forced release of what was rolled back."""
    (book.root / "recipes").mkdir()
    (book.root / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(book.root)
    refused = {"verdict": {"passed": False, "reasons": ["accuracy 0.9 >= 0.95: failed"]}}
    back = {"rolled_back": {"from": "3", "by": "ada", "why": "slow"}}
    journal.record(book, "released", "digits", "1", {"by": "bob"})
    journal.record(book, "refused", "digits", "2", refused)
    journal.record(book, "released", "digits", "3", {"by": "bob"})
    journal.record(book, "rolled-back", "digits", "1", back)
    journal.record(book, "released", "digits", "3", {"by": "eve", "forced": "it was rolled back at noon (by ada: slow)"})

    read = json.loads(CliRunner().invoke(history_command, ["digits", "--json"]).stdout)
    served = [(entry["version"], datetime.fromisoformat(entry["at"])) for entry in read if entry["event"] in history.IN_FORCE]
    assert [version for version, _ in served] == ["1", "3", "1", "3"], "each until the next"
    assert all(at.utcoffset() is not None for _, at in served) and served == sorted(served, key=lambda one: one[1])
    people = [(entry["facts"].get("rolled_back") or entry["facts"]).get("by") for entry in read]
    assert people == ["bob", None, "bob", "ada", "eve"]
    printed = CliRunner().invoke(history_command, ["digits"]).stdout
    said = ("accuracy 0.9 >= 0.95: failed", "rolled back by ada: slow", "released by eve", "it was rolled back at noon")
    for line in ("digits@2  refused", *said):
        assert line in printed, printed
    assert printed.count("+00:00  digits@") == 5, "times have a zone"
