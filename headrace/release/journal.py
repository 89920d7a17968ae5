"""The release journal: what was in production when, by which verdict, with which evidence. Entries are only added."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import field_validator

from headrace import append_log
from headrace.project import Project

Event = Literal[
    "released",
    "refused",
    "awaiting-approval",
    "approved",
    "rejected",
    "expired",
    "rollout-step",
    "rollout-failed",
    "rollout-abandoned",
    "rolled-back",
    "rebuilt",
]


OLD_FACTS = {"on": "runner", "said": "reason"}


class Entry(append_log.LogEntry):
    """One entry of the journal."""

    at: str
    event: Event
    model: str
    version: str
    facts: dict[str, Any]
    """The evidence: metrics, verdict, data md5, git commit, run id, bento, image, replicas."""

    @field_validator("facts")
    @classmethod
    def _translate(cls, facts: dict[str, Any]) -> dict[str, Any]:
        """Reads entries with the old names of facts: `runner` (`process` or `docker`) was `on` (`processes` or `docker`),
        and `reason` was `said`."""
        translated = {OLD_FACTS.get(name, name): value for name, value in facts.items()}
        if translated.get("runner") == "processes":
            translated["runner"] = "process"
        return translated


def log(project: Project) -> append_log.Log:
    return append_log.Log(project.journal, "journal", project.state)


def record(project: Project, event: Event, model: str, version: str, facts: dict[str, Any]) -> Entry:
    """Adds one entry, synced to disk before it returns."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return append_log.append(
        log(project),
        lambda previous: Entry(at=now, event=event, model=model, version=version, facts=facts, previous=previous),
    )


def entries(project: Project, model: str | None = None) -> list[Entry]:
    """All entries, oldest first, or those of one model.

    Raises:
        HeadraceError: an entry was changed or removed, also at the end.
    """
    return [entry for entry in append_log.read_entries(log(project), Entry) if model in (None, entry.model)]


def last(project: Project, model: str, event: Event | None = None) -> Entry | None:
    """The newest entry of a model that says what became of a version, or its newest of one event. A package that was rebuilt
    says nothing of that."""
    found = reversed(entries(project, model))
    return next((e for e in found if (e.event == event if event else e.event != "rebuilt")), None)


def as_json(entry: Entry) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(entry.model_dump_json())
    return result
