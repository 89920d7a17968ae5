"""Publishes events: writes them to the outbox, and waits for nobody. The watchdog's deliveries pass them on.

What the release journal has (verdicts, reviews, releases, rollbacks) needs no call: the deliveries read the journal, and a
process that is killed right after the journal's entry loses no event.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

from headrace import console
from headrace.console import Report
from headrace.errors import HeadraceError
from headrace.event_names import EventName
from headrace.events import outbox
from headrace.events.event import Event, event_id
from headrace.project import Project


def publish(
    project: Project,
    name: EventName,
    model: str,
    data: dict[str, Any],
    *,
    key: str | None = None,
    report: Report = console.report,
) -> bool:
    """Writes an event to the outbox; returns whether it is there. It takes milliseconds, does not wait for any server, and
    never raises an error of the outbox: one that cannot be written is reported, and the caller goes on.

    Args:
        model: the name of the recipe.
        data: details as JSON values, for example `{"version": "3", "reasons": […]}`; never a secret. Control characters are
            replaced, and long texts are cut.
        key: names what the event is about, such as `failed RUN_ID`, for an event that several processes may find: it is
            published once.
    """
    event = Event(name, model, data) if key is None else Event(name, model, data, event_id(key))
    return _write(project, f"the event {event.type} of {model}", lambda connection: outbox.add(connection, event), report)


def keep_silent(project: Project, key: str, report: Report = console.report) -> bool:
    """Notes that the event of this key is not to be published, for example the failure of a run that a person interrupted."""
    note = f"that the event {key!r} is not published"
    return _write(project, note, lambda connection: outbox.add_silent(connection, event_id(key)), report)


def _write(project: Project, what: str, change: Callable[[sqlite3.Connection], object], report: Report) -> bool:
    try:
        with outbox.opened(project) as connection:
            change(connection)
        return True
    except (HeadraceError, sqlite3.Error, OSError) as error:
        with contextlib.suppress(OSError):
            report(f"{what} could not be written to {outbox.database(project)}: {error}")
        return False
