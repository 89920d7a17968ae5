"""Work in the thread: bounded in what waits, given up when nobody waits for it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from bentos.models import progress
from bentos.scheduling import worker_thread
from bentos.scheduling.worker_thread import WorkerThread
from headrace.runtime.http import Refused
from headrace.runtime.http_messages import CURRENT_REQUEST, TrackedRequest
from headrace.runtime.violations import ContractViolation


@pytest.fixture
def worker() -> WorkerThread:
    return WorkerThread()


@contextmanager
def held(worker: WorkerThread) -> Iterator[threading.Event]:
    """The thread, busy until the event is set."""
    release = threading.Event()
    worker.thread.submit(release.wait, 20)
    try:
        yield release
    finally:
        release.set()


def call_of(receive: Callable[[], Any]) -> TrackedRequest:
    return TrackedRequest({"type": "http", "headers": []}, receive)


async def never() -> dict[str, Any]:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def gone() -> dict[str, Any]:
    await asyncio.sleep(0.02)
    return {"type": "http.disconnect"}


def test_work_gives_its_result_or_its_error(worker: WorkerThread) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    assert asyncio.run(worker.run(10, lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        asyncio.run(worker.run(10, fails))
    assert worker.jobs == 0


def test_a_refused_payload_is_freed_in_the_thread(worker: WorkerThread) -> None:
    """While it waits for the event loop the thread reads the next body: two of them would not fit."""

    class Rows:
        pass

    kept: list[weakref.ref[Rows]] = []

    def refuses() -> None:
        rows = Rows()
        kept.append(weakref.ref(rows))
        try:
            raise ContractViolation("rows.0", "fewer", "many")
        except ContractViolation as violation:
            raise Refused(422, "contract_violation", str(violation)) from None

    gc.disable()
    try:
        with pytest.raises(Refused, match="fewer"):
            asyncio.run(worker.run(10, refuses))
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_request_that_takes_too_long_is_refused_and_its_waiting_work_never_starts(
    worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_thread, "REQUEST_SECONDS", 0.05)
    started: list[int] = []
    with held(worker) as release:
        with pytest.raises(Refused) as refused:
            asyncio.run(worker.run(10, lambda: started.append(1)))
        release.set()
    assert (refused.value.status, refused.value.code) == (504, "too_slow")
    worker.thread.submit(int).result(20)
    assert started == []
    assert worker.jobs == 0


def test_the_waiting_work_of_a_disconnected_client_is_dropped(worker: WorkerThread) -> None:
    started: list[int] = []

    async def scenario() -> None:
        CURRENT_REQUEST.set(call_of(gone))
        await worker.run(10, lambda: started.append(1))

    with held(worker) as release:
        with pytest.raises(ClientDisconnect):
            asyncio.run(scenario())
        release.set()
    worker.thread.submit(int).result(20)
    assert started == []


def test_running_work_of_a_disconnected_client_ends_at_its_next_progress_report(
    worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_thread, "REQUEST_SECONDS", 0.05)
    parts: list[int] = []

    def in_parts() -> None:
        for i in range(1000):
            progress.report()
            parts.append(i)
            time.sleep(0.01)

    with pytest.raises(Refused):
        asyncio.run(worker.run(10, in_parts))
    worker.thread.submit(int).result(20)
    assert 1 <= len(parts) < 1000


def test_a_client_that_stays_connected_gets_its_answer(worker: WorkerThread) -> None:
    async def scenario() -> int:
        CURRENT_REQUEST.set(call_of(never))
        return await worker.run(10, lambda: 7)

    assert asyncio.run(scenario()) == 7


def test_a_queue_that_would_take_too_long_refuses_new_work_and_finishes_the_old(
    worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_thread, "QUEUE_SECONDS", 0.1)
    asyncio.run(worker.run(1000, lambda: time.sleep(0.06)))  # what work of this size takes

    async def scenario() -> list[int | str]:
        async def one(i: int) -> int | str:
            try:
                return await worker.run(1000, lambda: i)
            except Refused as refused:
                assert (refused.status, refused.headers) == (503, {"retry-after": "1"})
                return refused.code

        found = asyncio.gather(*(one(i) for i in range(6)))
        await asyncio.sleep(0.05)
        release.set()
        return await found

    with held(worker) as release:
        assert asyncio.run(scenario()) == [0, 1, "overloaded", "overloaded", "overloaded", "overloaded"]
    assert asyncio.run(worker.run(1000, lambda: "worker again")) == "worker again"


def test_tenants_take_turns_so_that_one_busy_tenant_does_not_delay_others(
    worker: WorkerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_thread, "QUEUE_SECONDS", 0.1)
    asyncio.run(worker.run(1000, lambda: time.sleep(0.03)))
    order: list[str] = []

    async def ask(tenant: str) -> bool:
        call = call_of(never)
        call.tenant = tenant
        CURRENT_REQUEST.set(call)
        try:
            await worker.run(1000, lambda: order.append(tenant))
        except Refused:
            return False
        return True

    async def scenario() -> list[bool]:
        flood = [asyncio.create_task(ask("acme")) for _ in range(20)]
        await asyncio.sleep(0.02)
        other = asyncio.create_task(ask("globex"))
        await asyncio.sleep(0.02)
        release.set()
        return [await other, *await asyncio.gather(*flood)]

    with held(worker) as release:
        served = asyncio.run(scenario())
    assert served[0]
    assert not all(served)
    assert order.index("globex") <= worker_thread.JOBS_IN_THREAD + 1  # those that the thread has, and one whose turn it was
    assert worker.jobs == 0


def test_work_without_progress_is_reported(worker: WorkerThread) -> None:
    assert worker.thread.silent_seconds == 0
    with held(worker):
        end = time.monotonic() + 20
        while worker.thread.silent_seconds < 0.05:
            assert time.monotonic() < end
            time.sleep(0.005)
    reported = threading.Event()

    def tells() -> None:
        for _ in range(10):
            progress.report()
            time.sleep(0.02)
        reported.set()

    worker.thread.submit(tells)
    assert reported.wait(20)
    worker.thread.submit(int).result(20)
    assert worker.thread.silent_seconds == 0


@pytest.mark.parametrize("is_started", [True, False])
def test_a_request_knows_whether_its_rows_were_worked_on_when_its_client_leaves(worker: WorkerThread, is_started: bool) -> None:
    begun, release = threading.Event(), threading.Event()

    async def leaves() -> dict[str, Any]:
        await asyncio.to_thread(begun.wait, 20 if is_started else 0.05)
        return {"type": "http.disconnect"}

    request = call_of(leaves)
    request.spent = {"2026-11-24": 3}

    def work() -> None:
        begun.set()
        release.wait(20)

    async def scenario() -> None:
        CURRENT_REQUEST.set(request)
        await worker.run(10, work)

    if not is_started:
        worker.thread.submit(release.wait, 20)
    with pytest.raises(ClientDisconnect):
        asyncio.run(scenario())
    release.set()
    assert request.is_worked_on == is_started
