"""Schedules batches and the processes that work on them. The state on disk is authoritative; this is a view of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any

from headrace.processes import PARENT_PID
from headrace.project import Project
from headrace.services.api.batch_store import BatchFolder, BatchStore, Progress, Submitted, now

logger = logging.getLogger("headrace.services.api.batch")
AT_ONCE = 2
"""Batches that are processed at the same time."""
POLL_SECONDS = 1.0
MAX_CRASHES = 3
"""A batch fails when its process dies this often without progress."""
CLEANUP_SECONDS = 3600.0
"""How often old batches are removed."""


class BatchQueue:
    """All batches, and the processes that work on them. An asynchronous context manager."""

    def __init__(self, project: Project, store: BatchStore, keep_seconds: float) -> None:
        """
        Args:
            keep_seconds: how long a batch that has ended is kept, with its result.
        """
        self._project, self._store, self._keep_seconds = project, store, keep_seconds
        self._known: dict[str, Submitted] = {}
        self._open: dict[str, BatchFolder] = {}
        self._active: set[str] = set()
        """Batches that are processed, from the moment that they are chosen."""
        self._processes: dict[str, Process] = {}
        self._cleanup_at = 0.0
        self._crashes: Counter[tuple[str, int]] = Counter()
        self._wake_up = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> BatchQueue:
        for folder in await asyncio.to_thread(self._store.open):
            self.add(folder)
        self._start(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, folder: BatchFolder) -> None:
        submitted = folder.submitted
        self._known[submitted.id] = submitted
        if not folder.progress.has_ended:
            self._open[submitted.id] = folder
            self._wake_up.set()

    def get(self, batch_id: str) -> Submitted | None:
        return self._known.get(batch_id)

    def all(self) -> list[Submitted]:
        return list(self._known.values())

    def count_open(self, tenant: str) -> int:
        """The number of a tenant's batches that have not ended."""
        return sum(self._known[batch_id].tenant == tenant for batch_id in self._open)

    def progress(self, batch_id: str) -> Progress:
        """Returns the stored progress; a running batch without a process is queued."""
        found = self._store.folder(batch_id).progress
        return replace(found, state="queued") if found.state == "running" and batch_id not in self._active else found

    async def cancel(self, batch_id: str) -> Progress:
        """Cancels a batch and returns its progress; a batch that has ended is removed."""
        folder = self._store.folder(batch_id)
        found = folder.progress
        if found.has_ended:
            self._known.pop(batch_id, None)
            await asyncio.to_thread(self._store.discard, folder)
            return found
        self._open.pop(batch_id, None)
        while batch_id in self._active:
            if process := self._processes.get(batch_id):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.sleep(0.01)
        cancelled = replace(folder.progress, state="cancelled", waits_until=None, error=None, changed_at=now())
        folder.write_progress(cancelled)
        await asyncio.to_thread(folder.remove_rows)
        return cancelled

    async def _run(self) -> None:
        while True:
            self._wake_up.clear()
            if now() >= self._cleanup_at:
                await self._remove_old()
            for batch_id in self._next():
                self._active.add(batch_id)
                self._start(self._work(batch_id))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake_up.wait(), POLL_SECONDS)

    def _next(self) -> list[str]:
        """Chooses the batches to start: of the tenant with the fewest in progress, then the oldest."""
        chosen: list[str] = []
        ready = [batch for batch in self._open if batch not in self._active and self._is_due(batch)]
        while ready and len(self._active) + len(chosen) < AT_ONCE:
            running = Counter(self._known[batch].tenant for batch in [*self._active, *chosen])
            first = min(ready, key=lambda batch: (running[self._known[batch].tenant], self._known[batch].created_at))
            ready.remove(first)
            chosen.append(first)
        return chosen

    def _is_due(self, batch_id: str) -> bool:
        waits_until = self._open[batch_id].progress.waits_until
        return waits_until is None or now() >= waits_until

    async def _work(self, batch_id: str) -> None:
        """Runs the batch's process and reads what it left."""
        folder = self._store.folder(batch_id)
        try:
            code = await self._run_process(folder)
            if code != 0 and batch_id in self._open:
                self._handle_crash(folder, code)
            if folder.progress.has_ended:
                self._open.pop(batch_id, None)
        finally:
            self._active.discard(batch_id)
            self._wake_up.set()

    async def _run_process(self, folder: BatchFolder) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "headrace.services.api.batch_worker",
            str(folder.path),
            stdin=DEVNULL,
            env={**os.environ, "HEADRACE_ROOT": str(self._project.root), PARENT_PID: str(os.getpid())},
        )
        self._processes[folder.path.name] = process
        try:
            return await process.wait()
        finally:
            del self._processes[folder.path.name]

    def _handle_crash(self, folder: BatchFolder, code: int) -> None:
        found = folder.progress
        mark = (folder.path.name, found.rows_done)
        self._crashes[mark] += 1
        logger.error("the process of batch %s ended with %d", folder.path.name, code)
        if self._crashes[mark] >= MAX_CRASHES:
            error = {"code": "internal", "message": "the batch cannot be processed; see the log of the API server"}
            folder.write_progress(replace(found, state="failed", error=error, changed_at=now()))
        else:
            folder.write_progress(
                replace(found, state="waiting", waits_until=now() + 1.0, changed_at=found.changed_at or now())
            )

    async def _remove_old(self) -> None:
        self._cleanup_at = now() + CLEANUP_SECONDS
        for batch_id in self._known.keys() - self._open.keys():
            folder = self._store.folder(batch_id)
            if now() - folder.progress.changed_at > self._keep_seconds:
                await asyncio.to_thread(self._store.discard, folder)
                self._known.pop(batch_id, None)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
