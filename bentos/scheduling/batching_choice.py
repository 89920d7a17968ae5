"""Whether requests that come together should run together: measured on the model itself, when its bento is built.

Waiting for company never pays for a tiny model: HTTP costs more than its graph. A large one answers many rows in little more
time than one, and then a queue is shortest when all that has gathered in it runs at once.
"""

from __future__ import annotations

import time
from typing import Any

from bentos.models.served_model import ServedModel
from bentos.scheduling.streams import Streaming

ROWS = (32, 8)
"""Rows of a batch, tried from the largest."""
WORTH = 0.7
"""A row among others has to cost at most this share of a row alone."""
HANDED_SECONDS = 0.0003
"""And so much less: about twice what it costs a request to be handed to the thread and back."""
LONGEST_SECONDS = 0.25
"""No batch may keep a request waiting for longer than this."""
REPEATS = 5


def choose_batching(model: ServedModel) -> dict[str, Any] | None:
    """`{"max_rows", "wait_seconds"}` for a model that gains by it, else None.

    `wait_seconds` is 0: a batch is what has gathered while the one before it ran, so that a lone request never waits.
    """
    if isinstance(model, Streaming):
        return None  # its texts run together by their own rules
    alone = _seconds(model, 1)
    if alone < HANDED_SECONDS:
        return None
    for rows in ROWS:
        together = _seconds(model, rows)
        if together <= LONGEST_SECONDS and together / rows <= min(WORTH * alone, alone - HANDED_SECONDS):
            return {"max_rows": rows, "wait_seconds": 0.0}
    return None


def _seconds(model: ServedModel, rows: int) -> float:
    """The shortest of a few runs: what else the machine does only ever adds."""
    instances = [model.contract.sample] * rows
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.predict(instances)
        found.append(time.perf_counter() - start)
        if found[-1] > LONGEST_SECONDS:
            break
    return min(found)
