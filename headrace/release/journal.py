"""The release journal: what was in production when, by which gate, with which evidence. Lines are only ever added."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from headrace import append_log
from headrace.project import Project

Event = Literal[
    "released",
    "refused",
    "awaiting-approval",
    "approved",
    "rollout-step",
    "rollout-failed",
    "rollout-abandoned",
    "rolled-back",
]


class Entry(append_log.Link):
    """One line of the journal."""

    at: str
    event: Event
    model: str
    version: str
    facts: dict[str, Any]
    """What the decision rests on: metrics, verdict, data md5, git commit, run id, bento, image, replicas."""


def record(project: Project, event: Event, model: str, version: str, facts: dict[str, Any]) -> Entry:
    """Adds one line, synced to disk before it returns."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return append_log.add(
        project.journal,
        lambda previous: Entry(at=now, event=event, model=model, version=version, facts=facts, previous=previous),
    )


def entries(project: Project, model: str | None = None) -> list[Entry]:
    """All lines, oldest first, or those of one model.

    Raises:
        HeadraceError: a line was changed or taken out.
    """
    return [entry for entry in append_log.read(project.journal, Entry, "journal") if model in (None, entry.model)]


def last(project: Project, model: str, event: Event | None = None) -> Entry | None:
    """The newest entry of a model (of one kind of event)."""
    return next((e for e in reversed(entries(project, model)) if event in (None, e.event)), None)


def as_json(entry: Entry) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(entry.model_dump_json())
    return result
