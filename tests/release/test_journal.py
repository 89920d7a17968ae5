"""The journal: append-only, whole after a kill, and a change to it shows."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.release import journal


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
