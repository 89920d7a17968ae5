"""A flow run that is cancelled or deleted in Prefect ends, with its processes and its locks, on a real Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import flow, get_client, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import refresh_global_settings_context
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling, Crashed, Running, State

from flows import cancellation
from flows.cancellation import RunEnded, supervised_run
from headrace.events.running import dead_runs
from headrace.processes import children_ended
from headrace.project import Project
from headrace.release.lock import release_lock
from headrace.services.events.dead_runs import publish_dead_runs
from headrace.services.prefect import prefect_environment
from tests.paths import ROOT
from tests.services.prefect_server import prefect_server

SECONDS = 60.0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with prefect_server(tmp_path_factory.mktemp("clone")) as found:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in prefect_environment(found).items():
                patch.setenv(name, value)
            refresh_global_settings_context()  # other threads see no temporary settings
            yield found
        refresh_global_settings_context()


@dataclass
class Attempt:
    """A release in the middle of a stage: it holds the lock and waits for a process."""

    project: Project
    stage: psutil.Popen | None = None
    run_ids: list[str] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)

    def run(self, name: str, body: Callable[[], object]) -> object:
        """Runs a flow as those in `flows` are written."""

        @flow(name=name)
        def supervised() -> None:
            self.run_ids.append(str(flow_run.get_id()))
            with supervised_run():
                body()

        return supervised()

    def wait_for_stage(self) -> None:
        with release_lock("toy", self.project), children_ended():
            self.stage = psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            self.started.set()
            self.stage.wait()

    def interrupt(self, run: Callable[[], object], end: Callable[[str], None], which: int = 0) -> list[State[Any] | None]:
        """Runs a flow until its stage waits, ends the run of this index, and returns the state of each run; None if deleted."""

        def end_when_started() -> None:
            assert self.started.wait(SECONDS)
            end(self.run_ids[which])

        person = threading.Thread(target=end_when_started)
        person.start()
        with pytest.raises(RunEnded):
            run()
        person.join()
        assert self.stage is not None and not self.stage.is_running()
        with release_lock("toy", self.project):
            return [state_of(run_id) for run_id in self.run_ids]


def state_of(run_id: str) -> State[Any] | None:
    with suppress(ObjectNotFound), get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(run_id)).state
    return None


def cancel(run_id: str) -> None:
    """As the UI does."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run_id), Cancelling())


def delete(run_id: str) -> None:
    with get_client(sync_client=True) as client:
        client.delete_flow_run(UUID(run_id))


def test_a_cancelled_run_ends_with_its_processes_and_frees_the_lock(project: Project) -> None:
    attempt = Attempt(project)
    (state,) = attempt.interrupt(lambda: attempt.run("release", attempt.wait_for_stage), cancel)
    assert state is not None and (state.is_cancelled(), state.message) == (True, "cancelled in Prefect")


@pytest.mark.parametrize("which", [0, 1], ids=["the refresh", "its release"])
def test_a_cancelled_refresh_ends_with_the_release_in_it(which: int, project: Project) -> None:
    attempt = Attempt(project)
    states = attempt.interrupt(
        lambda: attempt.run("refresh", lambda: attempt.run("release", attempt.wait_for_stage)), cancel, which
    )
    assert [state is not None and state.is_cancelled() for state in states] == [True, True]


def test_a_deleted_run_ends(project: Project) -> None:
    attempt = Attempt(project)
    assert attempt.interrupt(lambda: attempt.run("release", attempt.wait_for_stage), delete) == [None]


def test_a_worker_has_time_to_end_its_runs_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `kill -9` of the worker nobody else ends them."""
    attempt = Attempt(project)
    monkeypatch.setattr(cancellation, "WORKER_SECONDS", 3.0)

    def by_worker() -> None:
        monkeypatch.setenv(cancellation.BY_WORKER, attempt.run_ids[0])
        attempt.wait_for_stage()

    began = time.monotonic()
    (state,) = attempt.interrupt(lambda: attempt.run("release", by_worker), cancel)
    assert state is not None and state.is_cancelled() and time.monotonic() - began > 3.0


def test_flows_within_a_killed_run_are_closed_with_it(project: Project) -> None:
    """As for a monitor whose refresh releases: Prefect's worker, if it is alive, closes the outermost run alone."""
    with get_client(sync_client=True) as client:
        outermost = client.create_flow_run(flow(name="monitor")(nothing))
        within = client.create_flow_run(flow(name="refresh")(nothing), parent_task_run_id=part_of(outermost.id, client))
        innermost = client.create_flow_run(flow(name="release")(nothing), parent_task_run_id=part_of(within.id, client))
        for run in (outermost, within, innermost):
            client.set_flow_run_state(run.id, Running(), force=True)
        client.set_flow_run_state(outermost.id, Crashed(), force=True)
    code = (
        "import os; from headrace.events.running import Run, marked; from headrace.project import find_project\n"
        f"with marked(Run({str(outermost.id)!r}, 'monitor', 'toy'), find_project(), OSError): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "HEADRACE_ROOT": str(project.root)}, cwd=ROOT, check=False)
    assert [run.id for run in dead_runs(project)] == [str(outermost.id)]
    publish_dead_runs(project)
    states = [state_of(str(run.id)) for run in (outermost, within, innermost)]
    assert [state.type.value for state in states if state] == ["CRASHED", "CRASHED", "CRASHED"]
    assert dead_runs(project) == []


def nothing() -> None:
    """A flow or a task that is never run."""


def part_of(run_id: UUID, client: SyncPrefectClient) -> UUID:
    """The task run by which a flow calls another one."""
    return client.create_task_run(task(nothing), run_id, dynamic_key="0").id
