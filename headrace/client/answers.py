"""What calls give back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["queued", "running", "waiting", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Prediction:
    """The answer to one request, in the order of its instances."""

    predictions: list[dict[str, Any]]
    model: str
    version: str
    id: str
    """`<model>@<version>:<request id>`: what feedback and `headrace trace` take."""
    request_id: str


@dataclass(frozen=True)
class Explanation:
    """Which parts of an instance its answer rests on."""

    method: str
    target: str | int | None
    """The class that is explained; of a value, its name or nothing."""
    value: float
    """The probability of `target`, or the predicted value."""
    base_value: float
    """The same for what the instance is compared with."""
    attributions: Any
    """What each part adds: by field of a table, by patch of an image, by word of a text, by node of a graph."""
    evaluations: int
    """Rows that the model answered for this; they count for the tenant."""
    model: str
    version: str
    id: str
    request_id: str
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A piece of a text that is being written; the last one says why the text ends, and whose it is."""

    text: str
    finish_reason: str | None = None
    """`stop` or `length`, in the last piece."""
    tokens: int | None = None
    id: str | None = None
    version: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Batch:
    """A file of rows that a model works through."""

    id: str
    model: str
    state: State
    """`waiting`: for the next day's quota, or for a replica; `waits_until` says how long."""
    rows_done: int
    rows_total: int | None
    """None until the rows are counted."""
    rows_failed: int
    """Rows that got an error instead of an answer."""
    created_at: float
    """Seconds since 1970."""
    media_type: str
    """Of the file, and of its result."""
    waits_until: float | None = None
    error: dict[str, Any] | None = None
    """Why it failed, or what it waits for."""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED
