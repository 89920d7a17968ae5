"""How long feedback is kept."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.services.feedback_store import FeedbackStore, RecordedAnswer, Truth, database, joined

DAY = 86400.0


def add(store: FeedbackStore, request_id: str, at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were `at`."""
    monkeypatch.setattr(time, "time", lambda: at)
    recorded = RecordedAnswer(at, request_id, "acme", "trips", "1", [1.0])
    assert store.add([Truth("acme", "trips", "1", request_id, 0, at)], recorded) == 1


def stored(project: Project) -> list[str]:
    return [one.request_id for one in joined(project, "trips")]


def test_old_feedback_is_removed_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    start = 1_800_000_000.0
    store = FeedbackStore(project, keep_days=10)
    add(store, "first", start, monkeypatch)
    add(store, "second", start + 5 * DAY, monkeypatch)
    add(store, "third", start + 10 * DAY - 1, monkeypatch)
    assert stored(project) == ["first", "second", "third"]
    add(store, "fourth", start + 10 * DAY + 1, monkeypatch)
    assert stored(project) == ["first", "second", "third", "fourth"], "the last removal is less than a day ago"
    add(store, "fifth", start + 12 * DAY, monkeypatch)
    assert stored(project) == ["second", "third", "fourth", "fifth"]
    store.close()
    again = FeedbackStore(project, keep_days=1)
    add(again, "sixth", start + 14 * DAY, monkeypatch)
    assert stored(project) == ["sixth"]
    again.close()


def test_a_repeated_truth_is_kept_from_its_own_time_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    store = FeedbackStore(project, keep_days=10)
    add(store, "a", 1_800_000_000.0, monkeypatch)
    add(store, "a", 1_800_000_000.0 + 9 * DAY, monkeypatch)
    add(store, "b", 1_800_000_000.0 + 15 * DAY, monkeypatch)
    assert [(one.request_id, one.truth) for one in joined(project, "trips")] == [
        ("a", 1_800_000_000.0 + 9 * DAY),
        ("b", 1_800_000_000.0 + 15 * DAY),
    ]
    store.close()


def test_freed_pages_are_used_for_new_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not grow any further."""
    project = Project(tmp_path)
    store = FeedbackStore(project, keep_days=2)

    def a_day(day: int) -> int:
        monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0 + day * DAY)
        store.add([Truth("acme", "trips", "1", f"{day}", row, 1) for row in range(5000)], None)
        with sqlite3.connect(database(project)) as connection:
            return int(connection.execute("PRAGMA page_count").fetchone()[0])

    sizes = [a_day(day) for day in range(12)]
    store.close()
    assert max(sizes[6:]) <= sizes[4] * 1.1
