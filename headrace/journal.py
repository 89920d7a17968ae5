"""The release journal: what was in production when, by which gate, with which evidence. Lines are only ever added.

One JSON object a line, each with the sha256 of the line before it: a line changed or taken out later shows.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from headrace.errors import HeadraceError
from headrace.project import Project

Event = Literal["released", "refused", "awaiting-approval", "approved", "rollout-failed"]
START = "0" * 64


class Entry(BaseModel):
    """One line of the journal."""

    model_config = ConfigDict(frozen=True)
    at: str
    event: Event
    model: str
    version: str
    facts: dict[str, Any]
    """What the decision rests on: metrics, verdict, data md5, git commit, run id, bento, image, replicas."""
    previous: str = START


def record(project: Project, event: Event, model: str, version: str, facts: dict[str, Any]) -> Entry:
    """Adds one line, synced to disk before it returns."""
    project.journal.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(project.journal.with_suffix(".lock")):
        _mend_tail(project)
        lines = _lines(project)
        previous = hashlib.sha256(lines[-1].encode()).hexdigest() if lines else START
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(at=now, event=event, model=model, version=version, facts=facts, previous=previous)
        with project.journal.open("a", encoding="utf-8") as handle:
            handle.write(entry.model_dump_json() + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    return entry


def entries(project: Project, model: str | None = None) -> list[Entry]:
    """All lines, oldest first, or those of one model.

    Raises:
        HeadraceError: a line was changed or taken out.
    """
    found, previous = [], START
    for number, line in enumerate(_lines(project), start=1):
        try:
            entry = Entry.model_validate_json(line)
        except ValueError:
            entry = None
        if entry is None or entry.previous != previous:
            raise HeadraceError(
                "the journal was changed here: this line does not follow the one before it",
                where=f"{project.journal}:{number}",
                mend="restore mlruns/journal.jsonl from a backup",
            )
        previous = hashlib.sha256(line.encode()).hexdigest()
        found.append(entry)
    return [entry for entry in found if model in (None, entry.model)]


def last(project: Project, model: str, event: Event | None = None) -> Entry | None:
    """The newest entry of a model (of one kind of event)."""
    return next((e for e in reversed(entries(project, model)) if event in (None, e.event)), None)


def _lines(project: Project) -> list[str]:
    if not project.journal.exists():
        return []
    text = project.journal.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a line without its end is one that a kill cut: it was never recorded
    return [line for line in whole.split("\n") if line]


def _mend_tail(project: Project) -> None:
    """Cuts off a last line that a kill left unfinished."""
    if not project.journal.exists():
        return
    content = project.journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        with project.journal.open("r+b") as handle:
            handle.truncate(len(whole))


def as_json(entry: Entry) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(entry.model_dump_json())
    return result
