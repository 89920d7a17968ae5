"""An answer is found by its id without reading all records."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.services import answer_index
from headrace.services.answer_index import AnswerIndex
from headrace.services.feedback_store import FeedbackStore, Truth, find_recorded


def write(path: Path, *ids: str) -> Path:
    """Appends records, as a replica does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        for name in ids:
            values = {"at": 1.0, "id": name, "tenant": "acme", "model": "trips", "version": "1", "answers": [name]}
            handle.write(json.dumps(values, separators=(",", ":")) + "\n")
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(answer_index, "REST_BYTES", 1000)
    return Project(tmp_path)


def answer(project: Project, name: str) -> list[str] | None:
    found = find_recorded(project, "acme", name)
    return found.answers if found else None


def test_answers_are_found_in_the_indexed_part_and_behind_it_as_a_file_grows(project: Project) -> None:
    for step in range(8):
        write(project.usage / "a" / "answers-1.jsonl", *(f"id-{step}-{row}" for row in range(5)))
        write(project.usage / "b" / "answers-2.jsonl", f"other-{step}")
        for earlier in range(step + 1):
            for row in range(5):
                assert answer(project, f"id-{earlier}-{row}") == [f"id-{earlier}-{row}"]
            assert answer(project, f"other-{earlier}") == [f"other-{earlier}"]
        assert answer(project, f"id-{step}-5") is None
    assert find_recorded(project, "rival", "id-0-0") is None


def test_an_unknown_id_reads_nothing_of_what_is_indexed(project: Project, tmp_path: Path) -> None:
    index, path = AnswerIndex(tmp_path / "index"), write(project.usage / "a" / "answers-1.jsonl", *map(str, range(100)))
    assert index.search_from(path, "unknown") == path.stat().st_size
    assert index.search_from(path, "7") == 0
    write(path, "new")
    assert 0 < index.search_from(path, "unknown") < path.stat().st_size, "only what was added"


def test_a_small_file_that_is_not_written_any_more_is_indexed_too(project: Project, tmp_path: Path) -> None:
    index, path = AnswerIndex(tmp_path / "index"), write(project.usage / "a" / "answers-1.jsonl", "one")
    assert index.search_from(path, "unknown") == 0
    os.utime(path, (time.time() - 3600,) * 2)
    assert index.search_from(path, "unknown") == path.stat().st_size


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 21])
def test_a_damaged_index_is_made_again(project: Project, tmp_path: Path, content: bytes) -> None:
    index, path = AnswerIndex(tmp_path / "index"), write(project.usage / "a" / "answers-1.jsonl", *map(str, range(100)))
    index.search_from(path, "unknown")
    (file,) = (tmp_path / "index").glob("*.ids")
    file.write_bytes(content)
    assert index.search_from(path, "7") == 0
    assert index.search_from(path, "unknown") == path.stat().st_size


def test_indexes_of_files_that_are_gone_are_removed(project: Project) -> None:
    kept, gone = (write(project.usage / name / "answers-1.jsonl", *map(str, range(100))) for name in ("kept", "gone"))
    assert answer(project, "unknown") is None
    gone.unlink()
    store = FeedbackStore(project, 10)
    store.add([Truth("acme", "trips", "1", "r", 0, 1)], None)
    store.close()
    folder = project.state / "feedback" / "answer-index"
    assert [path.name for path in folder.iterdir()] == [f"kept-{kept.stem}.ids"]
