"""Dynamic batching: requests that arrive while the model runs form the next batch. `batching_choice` decides for which models.

A single request never waits for others. (Clipper, Crankshaw et al. 2017, waits until a timeout, as `wait_seconds` does.)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.served_model import ServedModel
from headrace.runtime.contract import Feeds


@dataclass(frozen=True)
class _Waiting:
    feeds: Feeds
    rows: int
    answer: asyncio.Future[NDArray[Any]]


class Batcher:
    """Runs the feeds of several requests in one call of the model. Called from the event loop."""

    def __init__(
        self, model: ServedModel, thread: Executor, max_rows: int, wait_seconds: float, count: Callable[[int], None]
    ) -> None:
        self.max_rows = max_rows
        self._model = model
        self._thread = thread
        self._wait_seconds = wait_seconds
        self._count = count
        self._queue: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.seconds_per_row = 0.0
        """Duration of the last batch, divided by its rows."""

    @property
    def queued_rows(self) -> int:
        return sum(waiting.rows for waiting in self._queue)

    async def run(self, feeds: Feeds, rows: int) -> NDArray[Any]:
        """Returns the model's output for these rows, `(rows, ...)`. Cancelling the call removes its rows from the queue."""
        waiting = _Waiting(feeds, rows, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._worker is None:
            self._worker = asyncio.create_task(self._run_queue())
        try:
            return await waiting.answer
        finally:
            del waiting  # it may hold an error that refers to this frame: see `wait_for`

    async def _run_queue(self) -> None:
        try:
            if self._wait_seconds:
                await asyncio.sleep(self._wait_seconds)
            while batch := self._next_batch():
                await self._run(batch)
        finally:
            self._worker = None

    def _next_batch(self) -> list[_Waiting]:
        """Removes the next requests from the queue: at most `max_rows` rows, or one larger request."""
        batch: list[_Waiting] = []
        rows = 0
        while self._queue and (not batch or rows + self._queue[0].rows <= self.max_rows):
            waiting = self._queue.popleft()
            if not waiting.answer.cancelled():
                batch.append(waiting)
                rows += waiting.rows
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        rows = sum(waiting.rows for waiting in batch)
        self._count(rows)
        start = time.perf_counter()
        try:
            feeds = batch[0].feeds if len(batch) == 1 else _joined(batch)
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._model.run, feeds)
        except Exception as error:
            await self._fail(batch, error)
            return
        self.seconds_per_row = (time.perf_counter() - start) / rows
        at = 0
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_result(outputs[at : at + waiting.rows])
            at += waiting.rows

    async def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        """Runs each request of a failed batch alone, so that only those that fail themselves get the error."""
        if len(batch) > 1:
            for waiting in batch:
                await self._run([waiting])
        elif not batch[0].answer.done():
            batch[0].answer.set_exception(error)


def _joined(batch: list[_Waiting]) -> Feeds:
    return {name: np.concatenate([waiting.feeds[name] for waiting in batch]) for name in batch[0].feeds}
