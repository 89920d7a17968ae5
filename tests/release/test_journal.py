"""The journal: append-only, whole after a kill, and a change to it shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.release import journal
from tests.paths import ROOT


@pytest.fixture
def book(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_entries_come_back_in_order(book: Project) -> None:
    journal.record(book, "released", "digits", "1", {"data_md5": "a"})
    journal.record(book, "refused", "flights", "1", {})
    journal.record(book, "released", "digits", "2", {"data_md5": "b"})
    assert [(e.model, e.version) for e in journal.entries(book)] == [("digits", "1"), ("flights", "1"), ("digits", "2")]
    last = journal.last(book, "digits", "released")
    assert last is not None and last.facts == {"data_md5": "b"}


def test_a_line_cut_by_a_kill_never_was(book: Project) -> None:
    journal.record(book, "released", "digits", "1", {})
    with book.journal.open("a") as handle:
        handle.write('{"at": "2026-01-01T00:00:00+00:00", "event": "rel')
    assert len(journal.entries(book)) == 1
    journal.record(book, "released", "digits", "2", {})
    assert [e.version for e in journal.entries(book)] == ["1", "2"]


@pytest.mark.parametrize("tamper", [lambda lines: lines[1:], lambda lines: [lines[0].replace("digits", "forged"), *lines[1:]]])
def test_a_changed_or_missing_line_is_found(book: Project, tamper: object) -> None:
    for version in "123":
        journal.record(book, "released", "digits", version, {})
    lines = book.journal.read_text().splitlines()
    book.journal.write_text("\n".join(tamper(lines)) + "\n")  # type: ignore[operator]
    with pytest.raises(HeadraceError, match="journal was modified"):
        journal.entries(book)


def test_lines_cut_at_the_end_are_found_and_stay_found(book: Project) -> None:
    for version in "1234":
        journal.record(book, "released", "digits", version, {})
    lines = book.journal.read_text().splitlines(keepends=True)
    book.journal.write_text("".join(lines[:2]))
    with pytest.raises(HeadraceError, match="the journal was modified: it has 2 lines, and had 4"):
        journal.entries(book)
    for version in "567":
        journal.record(book, "released", "digits", version, {})
    with pytest.raises(HeadraceError, match="the journal was modified: line 4 is not the one that was written"):
        journal.entries(book)
    book.journal.write_text("".join(lines))
    assert len(journal.entries(book)) == 4


def test_a_file_that_was_written_again_with_valid_hashes_is_found(book: Project, tmp_path: Path) -> None:
    forger = Project(tmp_path / "forger")
    for version in "12":
        journal.record(book, "released", "digits", version, {})
        journal.record(forger, "released", "forged", version, {})
    assert len(journal.entries(forger)) == 2
    book.journal.write_text(forger.journal.read_text())
    with pytest.raises(HeadraceError, match="line 2 is not the one that was written"):
        journal.entries(book)
    journal.log(book).anchor.write_text(journal.log(forger).anchor.read_text())
    with pytest.raises(HeadraceError, match=r"its anchor .* was modified"):
        journal.entries(book)
    journal.log(book).anchor.unlink()
    with pytest.raises(HeadraceError, match="which its end is compared with, is missing"):
        journal.entries(book)
    assert journal.log(book).key.stat().st_mode & 0o777 == 0o600


def test_a_journal_of_an_older_version_has_no_anchor_until_the_next_entry(book: Project) -> None:
    journal.record(book, "released", "digits", "1", {})
    journal.log(book).anchor.unlink()
    journal.log(book).key.unlink()
    assert len(journal.entries(book)) == 1
    journal.record(book, "released", "digits", "2", {})
    book.journal.write_text("")
    with pytest.raises(HeadraceError, match="it has 0 lines, and had 2"):
        journal.entries(book)


@pytest.mark.parametrize(("event", "count", "expected"), [("os.rename", 1, 1), ("open-a", 1, 1), ("os.rename", 2, 2)])
def test_a_kill_while_an_entry_is_written_is_no_modification(book: Project, event: str, count: int, expected: int) -> None:
    journal.record(book, "released", "digits", "1", {})
    child = f"""
import os, signal, sys
from pathlib import Path
from headrace.project import Project
from headrace.release import journal
left = {count}
def die(name, arguments):
    global left
    if name == {event!r} or (name == "open" and {event!r} == "open-a" and arguments[1] == "a"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
journal.record(Project(Path({str(book.root)!r})), "released", "digits", "2", {{}})
"""
    done = subprocess.run([sys.executable, "-c", child], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(journal.entries(book)) == expected
    journal.record(book, "released", "digits", "3", {})
    assert len(journal.entries(book)) == expected + 1


def _write_many(root: Path, model: str) -> None:
    for version in range(20):
        journal.record(Project(root), "released", model, str(version), {})


def test_two_processes_write_whole_lines(book: Project) -> None:
    context = get_context("spawn")
    writers = [context.Process(target=_write_many, args=(book.root, name)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(journal.entries(book)) == 40
