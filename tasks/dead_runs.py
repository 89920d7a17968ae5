"""Closes flow runs in Prefect whose process was killed, where the worker that would have noticed was killed too."""

from __future__ import annotations

import os
from contextlib import suppress
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

BY_WORKER = "PREFECT__FLOW_RUN_ID"
"""Environment variable of flows that a worker has started, and of their children."""
OPEN = (StateType.RUNNING, StateType.CANCELLING)
MESSAGE = "its process was killed"


def close_dead_runs(client: SyncPrefectClient) -> None:
    """Closes runs that a worker started and that have no process any more, and the runs within them.

    A flow sets its run to `Running` itself, so a run that is alive has a process. Runs that a terminal has started are known by
    the lock of their release, which closes them.
    """
    is_open = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(OPEN))))
    found = client.read_flow_runs(flow_run_filter=is_open)
    if not found:
        return
    alive = _runs_with_a_process()
    dead = {run.id for run in found if run.deployment_id is not None and str(run.id) not in alive}
    for run in found:
        if run.id in dead or (run.parent_task_run_id is not None and _has_dead_parent(run, dead, client)):
            close(run, client)


def close(run: FlowRun, client: SyncPrefectClient) -> None:
    """Gives a run that was killed its final state."""
    ended = Cancelled if run.state_type == StateType.CANCELLING else Crashed
    with suppress(ObjectNotFound):
        client.set_flow_run_state(run.id, ended(message=MESSAGE), force=True)


def _has_dead_parent(run: FlowRun, dead: set[UUID], client: SyncPrefectClient) -> bool:
    """Whether the run that this one is part of has ended, or has no process."""
    assert run.parent_task_run_id is not None
    with suppress(ObjectNotFound):
        parent = client.read_task_run(run.parent_task_run_id).flow_run_id
        return parent is not None and (parent in dead or client.read_flow_run(parent).state_type not in OPEN)
    return False


def _runs_with_a_process() -> set[str]:
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.environ().get(BY_WORKER, ""))
    return found
