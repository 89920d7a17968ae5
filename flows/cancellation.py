"""Ends a flow run that a person has cancelled or deleted in Prefect, wherever it was started."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.run_events import end_published
from headrace.processes import broken_pipes_ignored

POLL_SECONDS = 2.0
WORKER_SECONDS = 15.0
"""A worker ends the runs that it has started, unless it was killed meanwhile."""
JOIN_SECONDS = 5.0
"""The longest wait for the thread that watches, which may be waiting for an answer of Prefect's server."""
BY_WORKER = "PREFECT__FLOW_RUN_ID"
"""Environment variable of flows that a worker has started."""
MESSAGE = "cancelled in Prefect"


class RunEnded(Abort):
    """The flow run was cancelled or deleted in Prefect; its state is set already."""


class _Interruption(KeyboardInterrupt):
    """Raised in the main thread, as by Ctrl-C, so that all that is open is closed in the same way."""


@contextmanager
def supervised_run() -> Iterator[None]:
    """Runs the body of a flow so that it can be cancelled in Prefect's UI, and outlives the worker that has started it.

    Once a person cancels or deletes the flow run, KeyboardInterrupt is raised in the body. After that the run is `Cancelled`.

    Raises:
        RunEnded: in place of the body's result, when the run, or one within it, was cancelled or deleted.
    """
    run_id = flow_run.get_id()
    with broken_pipes_ignored(), end_published(), ExitStack() as stack:
        if run_id and threading.current_thread() is threading.main_thread():
            stack.enter_context(_interrupted_when_cancelled(UUID(str(run_id))))
        try:
            yield
        except (_Interruption, RunEnded):
            if run_id:
                _set_cancelled(UUID(str(run_id)))
            raise RunEnded(MESSAGE) from None


@contextmanager
def _interrupted_when_cancelled(run_id: UUID) -> Iterator[None]:
    """Raises `_Interruption` in this thread, the main one, soon after the run was cancelled."""
    ended = threading.Event()
    previous = signal.getsignal(signal.SIGUSR1)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not ended.is_set():
            raise _Interruption
        if callable(previous):  # it was meant for the run that this one is part of
            previous(number, frame)

    signal.signal(signal.SIGUSR1, interrupt)
    watch = threading.Thread(target=_watch, args=(run_id, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join(JOIN_SECONDS)
        signal.signal(signal.SIGUSR1, previous)


def _watch(run_id: UUID, ended: threading.Event) -> None:
    with get_client(sync_client=True) as client:
        while not ended.wait(POLL_SECONDS):
            with suppress(Exception):  # a server that is restarting: the next look finds it
                try:
                    run = client.read_flow_run(run_id)
                except ObjectNotFound:
                    break
                if run.state_type in (StateType.CANCELLING, StateType.CANCELLED):
                    break
        else:
            return
    if not ended.wait(WORKER_SECONDS if os.environ.get(BY_WORKER) else 0):
        os.kill(os.getpid(), signal.SIGUSR1)


def _set_cancelled(run_id: UUID) -> None:
    with suppress(ObjectNotFound), get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Cancelled(message=MESSAGE), force=True)
