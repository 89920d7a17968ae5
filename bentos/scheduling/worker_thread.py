"""The one thread for work that would hold up others: what waits for it is bounded, and what nobody waits for is left."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from bentos.scheduling import progress
from headrace.runtime.http import Refused, overloaded
from headrace.runtime.http_call import CURRENT, Call

Result = TypeVar("Result")
QUEUE_SECONDS = float(os.environ.get("HEADRACE_QUEUE_SECONDS", 2.0))
"""A request that would wait for longer is refused at once, and the balancer tries another replica."""
REQUEST_SECONDS = float(os.environ.get("HEADRACE_REQUEST_SECONDS", 30.0))
AT_ONCE = 2
"""Jobs that the thread has: one under way, and the next, so that it never waits for the event loop."""
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


class _Queue:
    """What waits for one tenant."""

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.count = 0
        """Under way too."""
        self.seconds = 0.0
        """That they are expected to take together."""


class _Job:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.beat = progress.Beat()
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class Workroom:
    """Runs jobs in the thread for requests that wait for them, tenants in turn. Called from the event loop."""

    def __init__(self) -> None:
        self.thread = PredictThread()
        self._expected: dict[int, float] = {}
        self._queues: dict[str, _Queue] = {}
        self._in_thread = 0

    @property
    def jobs(self) -> int:
        """Under way and waiting."""
        return sum(queue.count for queue in self._queues.values())

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """The result of `work`, which is as much as a body of `size` bytes makes.

        Raises:
            Refused: 503, too much waits already; 504, it took longer than `REQUEST_SECONDS`. The work is left then.
            ClientDisconnect: the client is gone. The work is left.
        """
        with self.room(self._expect(size)) as queue:
            job = _Job(lambda: self._timed(size, work))
            queue.jobs.append(job)
            self._fill()
            try:
                found: Result = await wait_for(job.result)
                return found
            finally:
                # A job that still waits never starts; one under way ends where it tells of its progress.
                job.beat.is_over = True
                del job  # see `wait_for`

    @contextmanager
    def room(self, seconds: float) -> Iterator[_Queue]:
        """Room for one more job of the current request's tenant, expected to take `seconds`.

        Raises:
            Refused: 503, it would wait too long, as tenants take turns.
        """
        call = CURRENT.get(None)
        tenant = "" if call is None else call.tenant
        queue = self._queues.setdefault(tenant, _Queue())
        wait = queue.seconds * len(self._queues)
        if queue.count > 1 and wait > QUEUE_SECONDS:
            raise overloaded(wait)
        queue.count += 1
        queue.seconds += seconds
        try:
            yield queue
        finally:
            queue.count -= 1
            queue.seconds -= seconds
            if not queue.count:
                del self._queues[tenant]

    def _fill(self) -> None:
        """Gives the thread what it does next: one tenant's job after another's."""
        loop = asyncio.get_running_loop()
        while self._in_thread < AT_ONCE and (job := self._next()) is not None:
            self._in_thread += 1
            done = self.thread.submit_with(job.beat, job.work)
            done.add_done_callback(functools.partial(self._tell, loop, job))

    def _tell(self, loop: asyncio.AbstractEventLoop, job: _Job, done: Future[Any]) -> None:
        """Called in the thread."""
        try:
            loop.call_soon_threadsafe(self._hand_over, job, done)
        except RuntimeError:  # the loop is closed: nobody is there any more
            self._in_thread -= 1

    def _next(self) -> _Job | None:
        for tenant, queue in list(self._queues.items()):
            while queue.jobs:
                job = queue.jobs.popleft()
                if job.result.done():  # given up
                    continue
                self._queues[tenant] = self._queues.pop(tenant)  # to the end of the line
                return job
        return None

    def _hand_over(self, job: _Job, done: Future[Any]) -> None:
        self._in_thread -= 1
        if not job.result.done():
            error = done.exception()
            if error is None:
                job.result.set_result(done.result())
            else:
                job.result.set_exception(error)
        self._fill()

    def _timed(self, size: int, work: Callable[[], Result]) -> Result:
        progress.made()  # or it is given up before it began
        start = time.perf_counter()
        try:
            result = work()
        except Refused as refused:  # its frames hold what was read of a body, hundreds of megabytes, and nobody reads them
            refused.__context__ = None
            raise refused.with_traceback(None) from None
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
        # An error holds the frames that it passed, and they the future that holds the error: with the request's whole body,
        # until a collection of the oldest objects, which a replica makes after millions of new ones.
        del work


async def _client_gone(call: Call | None) -> None:
    """Returns when the client has gone; never where that cannot be seen."""
    if call is None or (await call.receive())["type"] != "http.disconnect":
        await asyncio.get_running_loop().create_future()
