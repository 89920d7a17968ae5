"""One event: what happened to which model, as plain values without control characters and of a bounded size."""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from headrace.event_names import EventName

NAMESPACE = uuid.UUID("6f0d1d9e-2f2b-4d0a-9d0c-3a52a8f6a5d1")
MAX_TEXT = 2000
MAX_ITEMS = 50
MAX_DEPTH = 6
MAX_BYTES = 16 * 1024
"""Largest data of an event, as JSON. Standard Webhooks recommends payloads below 20 kB."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters, marks that change the direction of text, and halves of surrogate pairs. Tabs and newlines are kept."""


@dataclass(frozen=True)
class Event:
    """What happened to a model."""

    name: EventName
    model: str
    """Name of the recipe; empty for an event of the whole project."""
    data: dict[str, Any]
    """Details, as JSON values: `version`, `reasons`, and others by event."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    """A UUID. The same event has the same one in each delivery."""
    at: float = field(default_factory=time.time)
    """When it happened, in seconds since 1970, by this machine's clock. The clock may jump; the order is `seq`."""
    seq: int = 0
    """Its place in the outbox, which has the order of events."""

    @property
    def type(self) -> str:
        """Its name in Prefect and in webhooks."""
        return f"headrace.{self.name}"

    @property
    def time(self) -> str:
        """When it happened, in ISO 8601."""
        return datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def data_json(self) -> str:
        """Returns the data as JSON of at most `MAX_BYTES`."""
        text = json.dumps(plain(self.data), allow_nan=False)
        if len(text) <= MAX_BYTES:
            return text
        return json.dumps({**_short_values(plain(self.data)), "shortened": True})


def event_id(key: str) -> str:
    """Returns the UUID of an event that is published once however often it is found: `key` says what it is about."""
    return str(uuid.uuid5(NAMESPACE, key))


def plain(value: Any, depth: int = 0) -> Any:
    """Returns a value as JSON values whose texts are harmless on a terminal, in a mail and in JSON parsers of all languages.

    Texts are cut at 2,000 characters, lists and mappings at 50 items; numbers that JSON lacks become texts.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, dict) and depth < MAX_DEPTH:
        return {clean(str(name))[:100]: plain(one, depth + 1) for name, one in list(value.items())[:MAX_ITEMS]}
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        return [plain(one, depth + 1) for one in value[:MAX_ITEMS]]
    return clean(str(value))


def clean(text: str) -> str:
    """Returns a text without control characters, cut at `MAX_TEXT` characters."""
    found = CONTROL.sub("\ufffd", text)
    return found if len(found) <= MAX_TEXT else f"{found[: MAX_TEXT - 1]}…"


def _short_values(data: dict[str, Any]) -> dict[str, Any]:
    """The values of data that is too large which are short."""
    return {name: value for name, value in data.items() if len(json.dumps(value)) <= 200}
