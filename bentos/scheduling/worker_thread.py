"""The one thread for large work: its queue is bounded, tenants take turns, and abandoned work is skipped."""

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

from bentos.models import progress
from headrace.runtime.http import Refused, overloaded
from headrace.runtime.http_messages import CURRENT_REQUEST, TrackedRequest

Result = TypeVar("Result")
QUEUE_SECONDS = float(os.environ.get("HEADRACE_QUEUE_SECONDS", 2.0))
"""A request that would wait for longer is refused at once, and the load balancer tries another replica."""
REQUEST_SECONDS = float(os.environ.get("HEADRACE_REQUEST_SECONDS", 30.0))
JOBS_IN_THREAD = 2
"""Jobs submitted to the thread: one that runs and the next one, so that the thread never waits for the event loop."""
SMOOTHING = 0.8
"""Weight of the earlier estimate when a job updates the expected duration of its size."""


class PredictionThread(ThreadPoolExecutor):
    """One thread that knows for how long its job has made no progress."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="predict")
        self._progress: progress.JobProgress | None = None

    @property
    def silent_seconds(self) -> float:
        """Seconds since the running job began or last reported progress; 0 when none runs."""
        running = self._progress
        return 0.0 if running is None else time.monotonic() - running.reported_at

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._run, progress.JobProgress(), fn, args, kwargs)

    def submit_tracked(self, job: progress.JobProgress, fn: Callable[[], Result]) -> Future[Result]:
        """Runs `fn`, which can be cancelled by `job`."""
        return super().submit(self._run, job, fn, (), {})

    def _run(self, job: progress.JobProgress, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        job.reported_at = time.monotonic()
        self._progress = job
        progress.track(job)
        try:
            return fn(*args, **kwargs)
        finally:
            self._progress = None
            progress.track(None)


class _Queue:
    """Waiting jobs of one tenant."""

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.count = 0
        """Jobs that wait or run."""
        self.seconds = 0.0
        """Expected duration of them together."""


class _Job:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.progress = progress.JobProgress()
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class WorkerThread:
    """Runs jobs in the prediction thread for requests that wait for them, tenants in turn. Called from the event loop."""

    def __init__(self) -> None:
        self.thread = PredictionThread()
        self._durations: dict[int, float] = {}
        self._queues: dict[str, _Queue] = {}
        self._in_thread = 0

    @property
    def jobs(self) -> int:
        """Number of jobs that run or wait."""
        return sum(queue.count for queue in self._queues.values())

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """Returns the result of `work`, whose duration is estimated from `size`, in bytes of a request's body.

        Raises:
            Refused: 503, the queue is full; 504, it took longer than `REQUEST_SECONDS`, and the work is abandoned.
            ClientDisconnect: the client disconnected, and the work is abandoned.
        """
        with self.slot(self._expected_seconds(size)) as queue:
            job = _Job(functools.partial(self._timed, size, work, CURRENT_REQUEST.get(None)))
            queue.jobs.append(job)
            self._submit_next()
            try:
                found: Result = await wait_for(job.result)
                return found
            finally:
                # A job that still waits never starts; a running one ends where it reports its progress.
                job.progress.is_cancelled = True
                del job  # see `wait_for`

    @contextmanager
    def slot(self, seconds: float) -> Iterator[_Queue]:
        """Reserves a place in the queue for a job of the current request's tenant, expected to take `seconds`.

        Raises:
            Refused: 503, the job would wait too long, as tenants take turns.
        """
        request = CURRENT_REQUEST.get(None)
        tenant = "" if request is None else request.tenant
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

    def _submit_next(self) -> None:
        """Submits the next jobs to the thread, one tenant's after another's."""
        loop = asyncio.get_running_loop()
        while self._in_thread < JOBS_IN_THREAD and (job := self._next()) is not None:
            self._in_thread += 1
            done = self.thread.submit_tracked(job.progress, job.work)
            done.add_done_callback(functools.partial(self._notify, loop, job))

    def _notify(self, loop: asyncio.AbstractEventLoop, job: _Job, done: Future[Any]) -> None:
        """Passes the result to the event loop; called in the thread."""
        try:
            loop.call_soon_threadsafe(self._set_result, job, done)
        except RuntimeError:  # the loop is closed: the server has stopped
            self._in_thread -= 1

    def _next(self) -> _Job | None:
        for tenant, queue in list(self._queues.items()):
            while queue.jobs:
                job = queue.jobs.popleft()
                if job.result.done():  # abandoned
                    continue
                self._queues[tenant] = self._queues.pop(tenant)  # to the end of the line
                return job
        return None

    def _set_result(self, job: _Job, done: Future[Any]) -> None:
        self._in_thread -= 1
        if not job.result.done():
            error = done.exception()
            if error is None:
                job.result.set_result(done.result())
            else:
                job.result.set_exception(error)
        self._submit_next()

    def _timed(self, size: int, work: Callable[[], Result], request: TrackedRequest | None) -> Result:
        progress.report()  # raises if the job was cancelled before it began
        if request is not None and request.spent:
            request.is_worked_on = True
        start = time.perf_counter()
        try:
            result = work()
        except Refused as refused:  # its frames hold the values of a body, up to hundreds of megabytes, which are not needed
            refused.__context__ = None
            raise refused.with_traceback(None) from None
        seconds = time.perf_counter() - start
        bucket = size.bit_length()
        self._durations[bucket] = SMOOTHING * self._durations.get(bucket, seconds) + (1 - SMOOTHING) * seconds
        return result

    def _expected_seconds(self, size: int) -> float:
        """Returns the recent duration of work of this size, or of the next smaller known one."""
        bucket = size.bit_length()
        known = [k for k in self._durations if k <= bucket]
        return self._durations[max(known)] if known else 0.0


async def wait_for(work: asyncio.Future[Result]) -> Result:
    """Returns the result of `work`, which is cancelled when the current request is over before.

    Raises:
        Refused: 504, the current request has taken longer than `REQUEST_SECONDS`.
        ClientDisconnect: its client disconnected.
    """
    request = CURRENT_REQUEST.get(None)
    gone = asyncio.ensure_future(_wait_for_disconnect(request))
    left = REQUEST_SECONDS if request is None else REQUEST_SECONDS - (time.perf_counter() - request.started)
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


async def _wait_for_disconnect(request: TrackedRequest | None) -> None:
    """Returns when the client disconnects; never where that cannot be seen."""
    if request is None or (await request.receive())["type"] != "http.disconnect":
        await asyncio.get_running_loop().create_future()
