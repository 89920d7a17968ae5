"""The table of compressed variants."""

from __future__ import annotations

from headrace.evaluation.gate import Comparison
from headrace.evaluation.metrics import Result

ORIGINAL = "original"
"""The name of the uncompressed model in the table."""


class Variant(Result):
    """A row of the table."""

    method: str
    """The method, or `original`."""
    folder: str
    bytes: int | None = None
    """Size of the graph's file; None if the variant could not be made."""
    latency_ms: dict[int, float] = {}
    """Median time of a run by its number of rows."""
    memory_mb: float | None = None
    metric: float | None = None
    interval: tuple[float, float] | None = None
    """Of the metric on the test rows, 95 %."""
    comparison: Comparison | None = None
    """With the original on the same rows."""
    verdict: str = ""
    """`passed` if the loss is shown to be below `max_loss`, `failed`, `unchanged` or `not made`."""
    sentences: list[str] = []


class Variants(Result):
    """The table."""

    recipe: str
    metric: str
    max_loss: float
    confidence: float
    rows: int
    """Test rows."""
    threads: int
    variants: list[Variant]
    picture: str
