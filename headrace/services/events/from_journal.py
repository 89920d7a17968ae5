"""Events of the release journal: each new entry is read once, so that a process that was killed after it has lost no event."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from datetime import datetime
from typing import Any

from headrace.event_names import EventName
from headrace.events import outbox
from headrace.events.event import Event, event_id
from headrace.project import Project
from headrace.release import journal
from headrace.release.journal import Entry

CURSOR = "journal"
NAMES: dict[str, EventName] = {
    "refused": "refused",
    "awaiting-approval": "awaiting-approval",
    "approved": "approved",
    "rejected": "rejected",
    "expired": "approval-expired",
    "released": "released",
    "rolled-back": "rolled-back",
    "rollout-failed": "rolled-back",
    "rollout-abandoned": "rolled-back",
}
RECENT_SECONDS = 3600.0
"""An outbox that is new takes the entries of the last hour; those of a journal that is older are not news."""


def take_new_entries(connection: sqlite3.Connection, project: Project, now: float | None = None) -> int:
    """Writes an event for each entry that was added since the last call, and returns their number.

    Entries and place are written at once. In a journal that is shorter than before, or has another entry at the place, as after
    `headrace restore`, only what is added from then on counts.

    Raises:
        HeadraceError: the journal was modified.
    """
    entries = journal.entries(project)
    found = outbox.read_meta(connection, CURSOR)
    if found is None:
        since = (time.time() if now is None else now) - RECENT_SECONDS
        new = [entry for entry in entries if _seconds(entry) >= since]
    elif found["count"] <= len(entries) and _digest(entries[: found["count"]]) == found["last"]:
        new = entries[found["count"] :]
    else:
        new = []
    place = {"count": len(entries), "last": _digest(entries)}
    if place == found:
        return 0
    with outbox.changing(connection):
        for entry in new:
            if entry.event in NAMES:
                outbox.add(connection, as_event(entry))
        outbox.write_meta(connection, CURSOR, place)
    return len(new)


def as_event(entry: Entry) -> Event:
    """Returns the event of an entry. Of its facts only what is made for people: no signature, and no id of a token."""
    facts = entry.facts
    data: dict[str, Any] = {"version": entry.version, **_details(entry)}
    if isinstance(metrics := facts.get("metrics"), dict):
        data["metrics"] = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return Event(NAMES[entry.event], entry.model, data, event_id(f"journal {_digest([entry])}"), _seconds(entry))


def _details(entry: Entry) -> dict[str, Any]:
    facts = entry.facts
    verdict = facts.get("verdict") if isinstance(facts.get("verdict"), dict) else {}
    by = {"by": facts["by"]} if facts.get("by") else {}
    if entry.event == "rolled-back":
        rollback = facts.get("rolled_back") or {}
        why = {"reason": rollback["why"]} if rollback.get("why") else {}
        return {"from": rollback.get("from"), "automatic": False, "by": rollback.get("by"), **why}
    if entry.event in ("rollout-failed", "rollout-abandoned"):
        return {"version": facts.get("serving"), "from": entry.version, "automatic": True, "reason": facts.get("reason")}
    if entry.event in ("approved", "rejected", "expired"):
        return {**by, **({"reason": facts["why"]} if facts.get("why") else {})}
    if entry.event == "refused":
        return {"reasons": (verdict or {}).get("reasons", [])}
    return by


def _seconds(entry: Entry) -> float:
    return datetime.fromisoformat(entry.at).timestamp()


def _digest(entries: list[Entry]) -> str:
    """Names the last of these entries; its line has the hash of the one before it."""
    return hashlib.sha256(entries[-1].model_dump_json().encode()).hexdigest() if entries else ""
