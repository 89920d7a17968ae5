"""Return values of the client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["queued", "running", "waiting", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Prediction:
    """The predictions for the instances of one request, in their order."""

    predictions: list[dict[str, Any]]
    model: str
    version: str
    id: str
    """`<model>@<version>:<request id>`, for feedback and `headrace trace`."""
    request_id: str
    warnings: list[dict[str, str]] = field(default_factory=list)
    """`{"path", "message"}` of each value that no training row had (the first hundred)."""


@dataclass(frozen=True)
class Explanation:
    """How much each part of an instance contributes to its prediction."""

    method: str
    target: str | int | None
    """The class that is explained; for a regression, the name of the value or None."""
    value: float
    """The probability of `target`, or the predicted value."""
    base_value: float
    """The same for the baseline."""
    attributions: Any
    """Contributions by field of a table, patch of an image, word of a text or node of a graph."""
    evaluations: int
    """Rows that the model computed for this; they count for the quota."""
    model: str
    version: str
    id: str
    request_id: str
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of the response."""


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed text. The last one has a `finish_reason` and the fields below it."""

    text: str
    finish_reason: str | None = None
    """`stop` or `length`, in the last piece."""
    tokens: int | None = None
    """Generated tokens."""
    id: str | None = None
    model: str | None = None
    version: str | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Batch:
    """A file of rows that a model predicts in the background."""

    id: str
    model: str
    state: State
    """`waiting`: for the quota of the next day or for a replica, until `waits_until`."""
    rows_done: int
    rows_total: int | None
    """None until the rows have been counted."""
    rows_failed: int
    """Rows that got an error instead of an answer."""
    created_at: float
    """Seconds since 1970."""
    media_type: str
    """Media type of the file and of its result."""
    waits_until: float | None = None
    error: dict[str, Any] | None = None
    """Why it failed or is waiting."""
    notes: list[str] = field(default_factory=list)
    """How the server has read the file."""
    refusals: list[dict[str, Any]] = field(default_factory=list)
    """Why rows were refused, once it is done: a reason each, with `count` and the first `rows`."""
    warnings: dict[str, int] = field(default_factory=dict)
    """The number of values that no training row had, by field, once it is done."""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state in ENDED
