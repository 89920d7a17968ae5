"""Names of the events that Headrace publishes; settings choose among them. Prefect knows each one as `headrace.NAME`."""

from __future__ import annotations

from typing import Literal, get_args

EventName = Literal[
    "data-added",
    "alarm",
    "failed",
    "crashed",
    "refused",
    "awaiting-approval",
    "approval-reminder",
    "approval-expired",
    "approved",
    "rejected",
    "released",
    "rolled-back",
    "test",
]
EVENT_NAMES: tuple[EventName, ...] = get_args(EventName)
NOTIFIED: tuple[EventName, ...] = (
    "alarm",
    "failed",
    "crashed",
    "awaiting-approval",
    "approval-reminder",
    "approval-expired",
    "released",
    "rolled-back",
)
"""Events that people are notified of by default."""
DESCRIPTIONS: dict[EventName, str] = {
    "data-added": "a batch was added to the data",
    "alarm": "monitoring found drift, or a falling quality",
    "failed": "a run ended with an error",
    "crashed": "the process of a run was killed, or its machine stopped",
    "refused": "the gate refused a version",
    "awaiting-approval": "a version passed the gate and waits for a person",
    "approval-reminder": "a version still waits for a person",
    "approval-expired": "a version waited too long and is not released",
    "approved": "a person approved a version",
    "rejected": "a person rejected a version",
    "released": "a version is in production",
    "rolled-back": "an earlier version serves again: by a person, or because a roll-out failed or was interrupted",
    "test": "a test by `headrace webhooks test`",
}
