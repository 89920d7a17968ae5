"""How far the deliveries of events are, and a test of webhooks."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from headrace.errors import ServiceError, UsageError, near_miss
from headrace.events import outbox
from headrace.events.event import Event
from headrace.events.outbox import ReceiverState
from headrace.project import Project
from headrace.services.events.receivers import NotDelivered, Receiver, WebhookReceiver, receivers
from headrace.settings import Webhook


def overview(project: Project) -> list[dict[str, Any]]:
    """Returns each receiver of the settings with its events, pending and delivered, and why it fails. Without secrets.

    Raises:
        DamagedFile, NewerFile: the outbox cannot be read.
    """
    if not outbox.database(project).exists():
        return [_described(receiver, None, 0) for receiver in receivers(project)]
    try:
        with outbox.opened(project) as connection:
            states = {state.key: state for state in outbox.receivers(connection)}
            return [
                _described(one, found := states.get(one.key), outbox.count_pending(connection, found) if found else 0)
                for one in receivers(project)
            ]
    except sqlite3.Error as error:
        raise ServiceError(f"the outbox cannot be read: {error}", where=str(outbox.database(project))) from None


def problems(found: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences about receivers that do not get their events, or have lost some."""
    lines = []
    for one in found:
        if one["error"]:
            until = "nothing more is sent to it" if one["gone"] else f"the next attempt is at {one['next_attempt']}"
            lines.append(f"{one['receiver']}: {one['error']}; pending events: {one['pending']}; {until}")
        if one["dropped"]:
            lines.append(f"{one['receiver']}: dropped events: {one['dropped']}, the last one {one['last_dropped']}")
    return lines


def send_test(project: Project, name: str | None) -> list[dict[str, Any]]:
    """Sends the event `headrace.test` to one webhook, or to all, from this process. One that accepts it gets events again, also
    when it was gone.

    Raises:
        UsageError: an unknown webhook.
    """
    wanted = [webhook for webhook in project.settings.webhooks if name in (None, webhook.name)]
    if not wanted:
        known = [webhook.name for webhook in project.settings.webhooks]
        raise UsageError(
            f"unknown webhook {name!r}; {near_miss(str(name), known)}" if name else "the project has no webhooks",
            where="webhooks",
            hint="docs/schedules.md describes the table [[webhooks]] of headrace.toml",
        )
    return [_test(webhook, project) for webhook in wanted]


def _test(webhook: Webhook, project: Project) -> dict[str, Any]:
    receiver, began = WebhookReceiver(webhook, project), time.monotonic()
    try:
        receiver.send(Event("test", "", {"webhook": webhook.name}))
    except NotDelivered as error:
        return {"webhook": webhook.name, "delivered": False, "error": str(error)}
    seconds = time.monotonic() - began
    if outbox.database(project).exists():
        with outbox.opened(project) as connection:
            outbox.resume(connection, receiver.key)
    return {"webhook": webhook.name, "delivered": True, "error": None, "seconds": round(seconds, 3)}


def _described(receiver: Receiver, state: ReceiverState | None, pending: int) -> dict[str, Any]:
    return {
        "receiver": receiver.label,
        "kind": receiver.key.partition(" ")[0],
        "events": list(receiver.events),
        "pending": pending,
        "delivered": state.delivered if state else 0,
        "last_delivered": _time(state.delivered_at) if state else None,
        "failures": state.failures if state else 0,
        "error": (state.error or None) if state else None,
        "next_attempt": _time(state.next_at) if state and not state.gone else None,
        "gone": bool(state and state.gone),
        "dropped": state.dropped if state else 0,
        "last_dropped": (state.dropped_last or None) if state else None,
    }


def _time(at: float) -> str | None:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at else None
