"""Decides, by measuring the model when its bento is built, whether concurrent requests should be batched.

Batching never pays for a tiny model, whose graph costs less than HTTP. A large model predicts many rows in little more time
than one, and then queues are shortest when everything that waits runs at once.
"""

from __future__ import annotations

import time
from typing import Any

from bentos.models.served_model import ServedModel
from bentos.scheduling.streams import Streaming

ROWS = (32, 8)
"""Batch sizes that are tried, the largest first."""
MAX_COST_RATIO = 0.7
"""Highest cost of a row in a batch, relative to a single row."""
THREAD_SECONDS = 0.0003
"""Least time that a row in a batch has to save: about twice the cost of passing a request to the thread and back."""
MAX_BATCH_SECONDS = 0.25
"""Longest duration of a batch, for which the next request has to wait."""
REPEATS = 5


def choose_batching(model: ServedModel) -> dict[str, Any] | None:
    """Returns `{"max_rows", "wait_seconds"}` for a model that gains from batching, else None.

    `wait_seconds` is 0: a batch is what arrived during the previous one, so that a single request never waits.
    """
    if isinstance(model, Streaming):
        return None  # texts are batched step by step, see `continuous`
    alone = _seconds(model, 1)
    if alone < THREAD_SECONDS:
        return None
    for rows in ROWS:
        together = _seconds(model, rows)
        if together <= MAX_BATCH_SECONDS and together / rows <= min(MAX_COST_RATIO * alone, alone - THREAD_SECONDS):
            return {"max_rows": rows, "wait_seconds": 0.0}
    return None


def _seconds(model: ServedModel, rows: int) -> float:
    """Returns the shortest of a few runs, because other work of the machine can only make a run longer."""
    instances = [model.contract.sample] * rows
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.predict(instances)
        found.append(time.perf_counter() - start)
        if found[-1] > MAX_BATCH_SECONDS:
            break
    return min(found)
