"""The one thread for work that would hold up others: what waits for it is bounded, and what nobody waits for is left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from bentos import progress
from bentos.call import CURRENT, Call
from bentos.http import Refused, overloaded

Result = TypeVar("Result")
QUEUE_SECONDS = float(os.environ.get("HEADRACE_QUEUE_SECONDS", 2.0))
"""A request that would wait for longer is refused at once, and the balancer tries another replica."""
REQUEST_SECONDS = float(os.environ.get("HEADRACE_REQUEST_SECONDS", 30.0))
MEMORY = 0.8
"""How much of the expected time comes from before the last job of that size."""


class PredictThread(ThreadPoolExecutor):
    """One thread that tells for how long it has made no progress."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="predict")
        self._beat: progress.Beat | None = None

    @property
    def silent_seconds(self) -> float:
        """Since the job under way began, or last said that it goes on; 0 when there is none."""
        beat = self._beat
        return 0.0 if beat is None else time.monotonic() - beat.at

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._run, progress.Beat(), fn, args, kwargs)

    def submit_with(self, beat: progress.Beat, fn: Callable[[], Result]) -> Future[Result]:
        """Runs `fn`, which `beat` can end."""
        return super().submit(self._run, beat, fn, (), {})

    def _run(self, beat: progress.Beat, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        beat.at = time.monotonic()
        self._beat = beat
        progress.watch(beat)
        try:
            return fn(*args, **kwargs)
        finally:
            self._beat = None
            progress.watch(None)


class Workroom:
    """Runs jobs in the thread for requests that wait for them."""

    def __init__(self) -> None:
        self.thread = PredictThread()
        self._expected: dict[int, float] = {}
        self._queued_seconds = 0.0
        self._jobs = 0

    @property
    def jobs(self) -> int:
        """Under way and waiting."""
        return self._jobs

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """The result of `work`, which is as much as a body of `size` bytes makes.

        Raises:
            Refused: 503, too much waits already; 504, it took longer than `REQUEST_SECONDS`. The work is left then.
            ClientDisconnect: the client is gone. The work is left.
        """
        beat = progress.Beat()
        with self.room(self._expect(size)):
            job = self.thread.submit_with(beat, lambda: self._timed(size, work))
            try:
                return await wait_for(asyncio.wrap_future(job))
            finally:
                # A job that still waits never starts; one under way ends where it tells of its progress.
                beat.is_over = True

    @contextmanager
    def room(self, seconds: float) -> Iterator[None]:
        """Room for one more job, expected to take `seconds`.

        Raises:
            Refused: 503, it would wait too long.
        """
        if self._jobs > 1 and self._queued_seconds > QUEUE_SECONDS:
            raise overloaded(self._queued_seconds)
        self._jobs += 1
        self._queued_seconds += seconds
        try:
            yield
        finally:
            self._jobs -= 1
            self._queued_seconds = self._queued_seconds - seconds if self._jobs else 0.0

    def _timed(self, size: int, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        kind = size.bit_length()
        self._expected[kind] = MEMORY * self._expected.get(kind, seconds) + (1 - MEMORY) * seconds
        return result

    def _expect(self, size: int) -> float:
        """Seconds that work of this size took lately, or the next smaller known."""
        kind = size.bit_length()
        known = [k for k in self._expected if k <= kind]
        return self._expected[max(known)] if known else 0.0


async def wait_for(work: asyncio.Future[Result]) -> Result:
    """The result of `work`, which is cancelled when nobody waits for it any more.

    Raises:
        Refused: 504, the current request has taken longer than `REQUEST_SECONDS`.
        ClientDisconnect: its client is gone.
    """
    call = CURRENT.get(None)
    gone = asyncio.ensure_future(_client_gone(call))
    left = REQUEST_SECONDS if call is None else REQUEST_SECONDS - (time.perf_counter() - call.started)
    try:
        await asyncio.wait((work, gone), timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise ClientDisconnect
        raise Refused(504, "too_slow", f"there was no answer within {REQUEST_SECONDS:g} s", {"retry-after": "1"})
    finally:
        gone.cancel()
        work.cancel()


async def _client_gone(call: Call | None) -> None:
    """Returns when the client has gone; never where that cannot be seen."""
    if call is None or (await call.receive())["type"] != "http.disconnect":
        await asyncio.get_running_loop().create_future()
