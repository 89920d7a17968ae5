"""Schedules batches and the processes that work on them. The state on disk is authoritative; this is a view of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from types import TracebackType
from typing import Any

from headrace.client.answers import State
from headrace.errors import DamagedFile
from headrace.processes import PARENT_PID
from headrace.project import Project
from headrace.services.api.batch_store import BatchFolder, BatchStore, Progress, Submitted, now
from headrace.services.api.disk_limits import BatchSizes, is_low
from headrace.services.api.internal_tokens import REVOKED, RevokedTokens

logger = logging.getLogger("headrace.services.api.batch")
AT_ONCE = 2
"""Batches that are processed at the same time."""
POLL_SECONDS = 1.0
TURN_SECONDS = 15.0
"""After this time a batch yields to the batch of a tenant that has none in progress."""
MAX_CRASHES = 3
"""A batch fails when its process dies this often without progress."""
DAY_SECONDS = 86400.0
CLEANUP_SECONDS = 3600.0
"""How often old batches are removed."""


class BatchQueue:
    """All batches, and the processes that work on them. An asynchronous context manager."""

    def __init__(self, project: Project, store: BatchStore) -> None:
        settings = project.settings
        self._project, self._store, self._revoked = project, store, RevokedTokens(project)
        self._keep_seconds = settings.batch_days * DAY_SECONDS
        self._open_seconds = settings.batch_open_days * DAY_SECONDS
        self._known: dict[str, Submitted] = {}
        self._open: dict[str, BatchFolder] = {}
        self._active: set[str] = set()
        """Batches that are processed, from the moment that they are chosen."""
        self._processes: dict[str, Process] = {}
        self._started: dict[str, float] = {}
        """When each active batch was started, on the monotonic clock."""
        self._served: dict[str, int] = {}
        """When each tenant was last chosen, in turns."""
        self._yielding: set[str] = set()
        self._sizes = BatchSizes()
        self._over_budget: set[str] = set()
        """Tenants whose batches take more space than they may."""
        self._is_disk_low = False
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

    def used_bytes(self, tenant: str) -> int:
        """Disk space of a tenant's batches, ended ones included."""
        own = [batch for batch in list(self._known.values()) if batch.tenant == tenant]
        return sum(self._sizes.of(batch, self._store.folder(batch.id)) for batch in own)

    def progress(self, batch_id: str) -> Progress:
        """Returns the stored progress; a running batch without a process is queued."""
        found = self._store.folder(batch_id).progress
        return replace(found, state="queued") if found.state == "running" and batch_id not in self._active else found

    async def cancel(self, batch_id: str) -> Progress:
        """Cancels a batch and returns its progress; a batch that has ended is removed."""
        folder = self._store.folder(batch_id)
        found = folder.progress
        if found.has_ended:
            await self._stop(batch_id)  # its process may still be ending
            await self._discard(folder)
            return found
        return await self._end(folder, "cancelled", None)

    async def _end(self, folder: BatchFolder, state: State, error: dict[str, Any] | None) -> Progress:
        """Ends a batch that is not done, with its process, and removes its rows. Returns its progress."""
        batch_id = folder.path.name
        await self._stop(batch_id)
        ended = replace(folder.progress, state=state, waits_until=None, error=error, changed_at=now())
        folder.write_progress(ended)
        await asyncio.to_thread(folder.remove_rows)
        self._sizes.forget(batch_id)
        return ended

    async def _stop(self, batch_id: str) -> None:
        """Ends the process of a batch, which is not started again."""
        self._open.pop(batch_id, None)
        while batch_id in self._active:
            if process := self._processes.get(batch_id):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.sleep(0.01)

    async def _run(self) -> None:
        while True:
            self._wake_up.clear()
            try:
                await self._schedule()
            except Exception:  # of one batch; the others go on
                logger.exception("batches could not be scheduled; this is tried again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake_up.wait(), POLL_SECONDS)

    async def _schedule(self) -> None:
        if now() >= self._cleanup_at:
            await self._remove_old()
        await self._end_overdue()
        await self._hold_without_space()
        for batch_id in self._next():
            self._active.add(batch_id)
            self._started[batch_id] = time.monotonic()
            self._start(self._work(batch_id))
        if not self._yielding and (longest := self._to_yield()) is not None:
            self._yield(longest)

    async def _end_overdue(self) -> None:
        """Ends batches whose token was revoked, also while they wait for a quota, and those that were sent too long ago."""
        try:
            revoked = await asyncio.to_thread(self._revoked.read)
        except DamagedFile as error:
            logger.error("revoked tokens cannot be read: %s", error)
            revoked = self._revoked.known
        for batch_id in list(self._open):
            sent, folder = self._known[batch_id], self._store.folder(batch_id)
            if sent.jti in revoked:
                await self._end(folder, "failed", REVOKED)
            elif now() - sent.created_at > self._open_seconds:
                days = self._open_seconds / DAY_SECONDS
                message = f"the batch was not done within {days:g} days (batch_open_days); submit the rest of the rows again"
                await self._end(folder, "failed", {"code": "overdue", "message": message})

    async def _hold_without_space(self) -> None:
        """Lets batches wait while the disk is nearly full, or their tenant has used up its space."""
        tenants = {self._tenant(batch_id) for batch_id in self._open}
        used = {tenant: await asyncio.to_thread(self.used_bytes, tenant) for tenant in tenants}
        self._over_budget = {tenant for tenant in tenants if used[tenant] > self._project.settings.tenant_batch_bytes}
        self._is_disk_low = await asyncio.to_thread(is_low, self._project)
        for batch_id in list(self._open):
            if (reason := self._lacks_space(batch_id)) is None:
                continue
            if batch_id in self._active:
                self._yield(batch_id)
            elif (found := self._open[batch_id].progress).error != reason:
                held = replace(found, state="waiting", error=reason, waits_until=None, changed_at=found.changed_at or now())
                self._open[batch_id].write_progress(held)

    def _lacks_space(self, batch_id: str) -> dict[str, Any] | None:
        if self._is_disk_low:
            return {"code": "disk_full", "message": "the service's disk is nearly full"}
        if self._tenant(batch_id) in self._over_budget:
            message = "the batches of this tenant take more space than tenant_batch_bytes; remove batches that have ended"
            return {"code": "over_budget", "message": message}
        return None

    def _yield(self, batch_id: str) -> None:
        """Tells the process of a batch to keep its answers and end."""
        if batch_id not in self._yielding and (process := self._processes.get(batch_id)):
            self._yielding.add(batch_id)
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    def _next(self) -> list[str]:
        """Chooses the batches to start: of the tenant with the fewest in progress, which waited longest; then the oldest."""
        chosen: list[str] = []
        ready = self._ready()
        while ready and len(self._active) + len(chosen) < AT_ONCE:
            running = Counter(self._tenant(batch) for batch in [*self._active, *chosen])
            first = min(ready, key=lambda batch: (*self._precedence(batch, running), self._known[batch].created_at))
            self._served[self._tenant(first)] = max(self._served.values(), default=0) + 1
            ready.remove(first)
            chosen.append(first)
        return chosen

    def _ready(self) -> list[str]:
        return [batch for batch in self._open if batch not in self._active and self._is_due(batch)]

    def _precedence(self, batch_id: str, running: Counter[str]) -> tuple[int, int]:
        tenant = self._tenant(batch_id)
        return running[tenant], self._served.get(tenant, 0)

    def _tenant(self, batch_id: str) -> str:
        return self._known[batch_id].tenant

    def _to_yield(self) -> str | None:
        """Returns the batch that makes room for a tenant that has none in progress; None while none has to."""
        running = Counter(self._tenant(batch) for batch in self._active)
        if len(self._active) < AT_ONCE or all(running[self._tenant(batch)] for batch in self._ready()):
            return None
        ending = time.monotonic() - TURN_SECONDS
        candidates = [batch for batch in self._processes if batch in self._active and self._started[batch] <= ending]
        return min(candidates, key=lambda batch: (-running[self._tenant(batch)], self._started[batch]), default=None)

    def _is_due(self, batch_id: str) -> bool:
        waits_until = self._open[batch_id].progress.waits_until
        return (waits_until is None or now() >= waits_until) and self._lacks_space(batch_id) is None

    async def _work(self, batch_id: str) -> None:
        """Runs the batch's process and reads what it left."""
        folder = self._store.folder(batch_id)
        try:
            code = await self._run_process(folder)
            has_yielded = code == -signal.SIGTERM and batch_id in self._yielding  # before it could catch the signal
            if code != 0 and not has_yielded and batch_id in self._open:
                self._handle_crash(folder, code)
            if folder.progress.has_ended:
                self._open.pop(batch_id, None)
        except Exception:
            logger.exception("batch %s could not be processed; this is tried again", batch_id)
        finally:
            self._active.discard(batch_id)
            self._yielding.discard(batch_id)
            self._started.pop(batch_id, None)
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
                await self._discard(folder)

    async def _discard(self, folder: BatchFolder) -> None:
        self._known.pop(folder.path.name, None)
        self._sizes.forget(folder.path.name)
        await asyncio.to_thread(self._store.discard, folder)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
