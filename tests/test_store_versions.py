"""What a newer Headrace wrote is refused with the file and both versions, and stays as it is; old stores say no version."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import NewerFile
from headrace.events import outbox
from headrace.files import read_cached_json, read_json
from headrace.project import Project
from headrace.release import journal
from headrace.runtime.usage import fold, read_usage
from headrace.services.feedback_store import FeedbackStore, database
from headrace.serving.access import audit, tokens
from headrace.serving.gateway.models_file import read_models
from headrace.serving.replicas.process_runner import ProcessRunner


def newer_json(path: Path, version: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema_version": version, "of": "the future"}))


def newer_replicas(path: Path) -> None:
    newer_json(path, 3)


def newer_line(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema_version": 2, "of": "the future"}) + "\n")


def opened(project: Project) -> None:
    with outbox.opened(project):
        pass


def newer_database(path: Path, version: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


STORES: dict[str, tuple[Callable[[Project], Path], Callable[[Path], None], Callable[[Project], Any]]] = {
    "journal": (lambda project: project.journal, newer_line, journal.entries),
    "audit": (lambda project: project.audit_log, newer_line, audit.entries),
    "tokens": (lambda project: project.keys / "tokens.json", newer_json, tokens.list_tokens),
    "models": (lambda project: project.gateway / "models.json", newer_replicas, read_models),
    "replicas": (
        lambda project: project.state / "replicas" / "x.json",
        newer_replicas,
        lambda project: ProcessRunner(project).list(),
    ),
    "usage": (
        lambda project: project.usage / "usage.db",
        lambda path: newer_database(path, 3),
        lambda project: read_usage(project.usage),
    ),
    "events": (outbox.database, newer_database, opened),
    "feedback": (database, newer_database, lambda project: FeedbackStore(project, 90)),
}


@pytest.mark.parametrize("store", STORES)
def test_a_store_of_a_newer_version_is_refused_unchanged(store: str, tmp_path: Path) -> None:
    place, write, read = STORES[store]
    project = Project(tmp_path)
    path = place(project)
    write(path)
    content = path.read_bytes()
    with pytest.raises(NewerFile, match=r"schema version (\d), and this Headrace knows versions up to (\d)") as caught:
        read(project)
    assert caught.value.where == str(path) and path.name in caught.value.message and caught.value.hint
    assert path.read_bytes() == content


def test_stores_without_a_version_have_version_1(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    for content in ({"a": 1}, {"schema_version": 1}, [2], {"schema_version": "text"}):
        path.write_text(json.dumps(content))
        assert read_json(path) == content
    path.write_text('{"schema_version": 2}')
    assert read_cached_json(path) is None, "what can be made again is made again"
    (tmp_path / "usage").mkdir()
    assert fold(tmp_path / "usage") == 0
