"""Requests that come while the model runs are run together next: for models whose bento says that this pays.

A batch is what has gathered while the one before it ran, so that a lone request runs at once. (Clipper, Crankshaw et al. 2017,
holds requests back until a time-out; `wait_seconds` does.)
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
    """Runs feeds of several requests through the model at once. Called from the event loop."""

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
        self.seconds_a_row = 0.0
        """That a row took in the last batch."""

    @property
    def queued_rows(self) -> int:
        return sum(waiting.rows for waiting in self._queue)

    async def run(self, feeds: Feeds, rows: int) -> NDArray[Any]:
        """The model's output for these rows, `(rows, ...)`. A caller that is cancelled takes its rows out of the queue."""
        waiting = _Waiting(feeds, rows, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        try:
            return await waiting.answer
        finally:
            del waiting  # an error that it holds holds this frame: see `wait_for`

    async def _work(self) -> None:
        try:
            if self._wait_seconds:
                await asyncio.sleep(self._wait_seconds)
            while batch := self._take():
                await self._run(batch)
        finally:
            self._worker = None

    def _take(self) -> list[_Waiting]:
        """The next requests, of `max_rows` together or one that is larger."""
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
        self.seconds_a_row = (time.perf_counter() - start) / rows
        at = 0
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_result(outputs[at : at + waiting.rows])
            at += waiting.rows

    async def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        """Alone, each request meets its own fate: what breaks one is not to break its neighbours."""
        if len(batch) > 1:
            for waiting in batch:
                await self._run([waiting])
        elif not batch[0].answer.done():
            batch[0].answer.set_exception(error)


def _joined(batch: list[_Waiting]) -> Feeds:
    return {name: np.concatenate([waiting.feeds[name] for waiting in batch]) for name in batch[0].feeds}
