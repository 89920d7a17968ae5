"""Runs a flow while things are killed, and again, until it has ended as it should."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.release import journal
from headrace.services import prefect
from headrace.services.approvals import TAG
from headrace.serving.replicas import project_processes
from tests.kills.matrix import Kill, Step, steps_of
from tests.kills.scenarios import RECIPE, Scenario
from tests.kills.steps import WAIT_SECONDS, Steps
from tests.kills.victims import UNSUPERVISED, VICTIMS, processes_of
from tests.release.live import Live

ATTEMPTS = 3
"""Runs after a kill: a server that is restarting can end the first."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
OPEN = ("RUNNING", "PENDING", "CANCELLING")
SETTLE_SECONDS = 120.0
"""Processes notice the death of their parent, and services start again, within this time."""


class Run(Protocol):
    """A flow that was started."""

    def is_over(self) -> bool: ...

    def has_succeeded(self) -> bool:
        """Whether it ended well."""

    @property
    def account(self) -> str:
        """What it said, for a person."""


@dataclass
class TerminalRun:
    """A flow that a command runs."""

    process: subprocess.Popen[bytes]
    log: Path

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def has_succeeded(self) -> bool:
        return self.process.returncode == 0

    @property
    def account(self) -> str:
        return self.log.read_text()[-3000:]


@dataclass
class WorkerRun:
    """A flow that Prefect's worker runs."""

    project: Project
    run_id: str
    pid: Callable[[], int | None]

    def is_over(self) -> bool:
        pid = self.pid()
        return (pid is not None and not _is_alive(pid)) or self._state() in ENDED

    def has_succeeded(self) -> bool:
        return self._state() == "COMPLETED"

    def _state(self) -> str:
        with contextlib.suppress(ServiceError):
            return str(prefect.call(self.project, "GET", f"flow_runs/{self.run_id}")["state"]["type"])
        return ""

    @property
    def account(self) -> str:
        with contextlib.suppress(ServiceError):
            query = {"logs": {"flow_run_id": {"any_": [self.run_id]}}, "sort": "TIMESTAMP_ASC"}
            return "\n".join(line["message"] for line in prefect.call(self.project, "POST", "logs/filter", query))[-3000:]
        return ""


@dataclass
class ApprovedRun:
    """The run that releases an approved version: in a process of Prefect's worker, and again in another one after a kill."""

    project: Project
    version: str

    def is_over(self) -> bool:
        """Whether no run will release the version any more; one that was killed is made again until the journal has it."""
        with contextlib.suppress(ServiceError):
            states = [run["state"]["type"] for run in reviews_in_prefect(self.project)]
            is_closed = bool(states) and set(states) <= {*ENDED}
            return is_closed and (self.has_succeeded() or states[0] != "CRASHED")
        return False

    def has_succeeded(self) -> bool:
        newest = journal.last(self.project, RECIPE)
        return newest is not None and (newest.event, newest.version) == ("released", self.version)

    @property
    def account(self) -> str:
        with contextlib.suppress(ServiceError):
            return "\n".join(f"{run['name']}: {run['state']}" for run in reviews_in_prefect(self.project))
        return ""


def reviews_in_prefect(project: Project) -> Any:
    """The runs that ask for approvals, newest first."""
    query = {"flow_runs": {"tags": {"all_": [TAG]}}, "sort": "EXPECTED_START_TIME_DESC"}
    return prefect.call(project, "POST", "flow_runs/filter", query)


@dataclass
class Killing:
    """A project whose flows are killed."""

    live: Live
    steps: Steps

    @property
    def project(self) -> Project:
        return self.live.project.using(self.live.settings)

    def run_undisturbed(self, scenario: Scenario) -> list[Step]:
        """Runs the flow once, and returns its steps."""
        self.steps.clear()
        run = self.start(scenario)
        self._wait(run)
        assert run.has_succeeded(), run.account
        return steps_of(self.steps.marks())

    def run_killed(self, scenario: Scenario, kills: Sequence[Kill], usual: Sequence[Step]) -> None:
        """Runs the flow until the first kill, and again until the next one, and so on, and then until it succeeds."""
        self.steps.clear()
        seconds = {step.name: step.seconds for step in usual}
        run, skip = None, 0
        for kill in kills:
            if run is None or run.is_over():
                skip = len(self.steps.marks())
                self.steps.pause_at(f"{kill.when} {kill.step}")
                run = self.start(scenario, kill.victim)
            self._strike(kill, run, skip, seconds[kill.step])
            if kill.victim in ("flow", "machine"):
                run = None
        for _ in range(ATTEMPTS):
            run = run or self.start(scenario)
            self._wait(run)
            if run.has_succeeded():
                return
            account = run.account
            assert "Traceback" not in account or isinstance(run, WorkerRun), account
            run = None
        raise AssertionError(f"the flow {scenario.flow} does not succeed when it is run again: {account}")

    def _strike(self, kill: Kill, run: Run, skip: int, seconds: float) -> None:
        """Waits until the flow is at the point, and kills."""
        point = f"before {kill.step}" if kill.when == "inside" else f"{kill.when} {kill.step}"
        self.steps.pause_at(f"{kill.when} {kill.step}")
        mark = self.steps.wait_for(point, run.is_over, skip)
        assert mark is not None, f"the flow ended before it was {point}: {run.account}"
        if kill.when == "inside":
            time.sleep(kill.fraction * seconds)
        VICTIMS[kill.victim](self.project, mark.pid)
        self.steps.go_on()

    def start(self, scenario: Scenario, victim: str = "") -> Run:
        """Starts the flow in a terminal where it has a command, except to kill the worker; else by its deployment."""
        if scenario.approves is not None:
            return self._approve(scenario.approves)
        if scenario.command is not None and victim != "worker":
            log = self.steps.folder / "output"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    ["headrace", *scenario.command],
                    cwd=self.project.root,
                    env=self.live.environment,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            return TerminalRun(process, log)
        skip = len(self.steps.marks())

        def pid() -> int | None:
            marks = self.steps.marks()[skip:]
            return marks[-1].pid if marks else None

        return WorkerRun(self.project, self._create_run(scenario), pid)

    def _approve(self, version: str) -> Run:
        """Approves the version; after a kill, does what a person would do where Headrace does not go on automatically."""
        self.ensure_up()
        run = ApprovedRun(self.project, version)
        newest = journal.last(self.project, RECIPE)
        if newest is not None and newest.event == "awaiting-approval":
            self._forget_reviews()
            self.live.run("approve", f"{RECIPE}@{version}")
        elif run.is_over() and not run.has_succeeded():
            self.live.run("run", RECIPE)
        return run

    def _forget_reviews(self) -> None:
        """Removes the runs of earlier approvals, which a restored project does not know: a candidate that had one gets none."""
        for run in reviews_in_prefect(self.project):
            if run["state"]["type"] in ENDED:
                prefect.call(self.project, "DELETE", f"flow_runs/{run['id']}")

    def _create_run(self, scenario: Scenario) -> str:
        self.ensure_up()
        named = {"deployments": {"name": {"any_": [scenario.deployment]}}}
        body = {"parameters": scenario.parameters(self.live), "state": {"type": "SCHEDULED"}}
        return str(
            self._retried(
                lambda: prefect.call(
                    self.project,
                    "POST",
                    f"deployments/{prefect.call(self.project, 'POST', 'deployments/filter', named)[0]['id']}/create_flow_run",
                    body,
                )["id"]
            )
        )

    def ensure_up(self) -> None:
        """Starts the services, as a machine does after a power cut, where they do not run."""
        if not project_processes.find_supervisords(self.project):
            self.live.run("up", environment={"PREFECT_WORKER_QUERY_SECONDS": "1"})

    def _wait(self, run: Run) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not run.is_over():
            assert time.monotonic() < deadline, f"the flow does not end: {run.account}"
            time.sleep(0.1)
        time.sleep(0.1)

    def leftovers(self) -> list[str]:
        """What a run that was killed must not leave, once all had time to settle."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (found := self._leftovers()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _leftovers(self) -> list[str]:
        commands = [_command(process) for process in processes_of(self.project)]
        found = [f"process: {line}" for line in commands if any(name in line for name in UNSUPERVISED)]
        with contextlib.suppress(ServiceError):
            query = {"flow_runs": {"state": {"type": {"any_": OPEN}}}}
            runs = prefect.call(self.project, "POST", "flow_runs/filter", query)
            found += [f"flow run: {run['name']} is {run['state']['type']}" for run in runs]
        status = self.live.status()
        found += [f"service: {one['name']} is {one['state']}" for one in status["services"] if one["state"] != "ready"]
        found += [f"model: {one['problem']}" for one in status["models"] if one["problem"]]
        return [*found, *(f"file: {path}" for path in self.project.root.rglob("*.part"))]

    def _retried(self, call: Callable[[], Any]) -> Any:
        """A server that was killed is back soon."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return call()
            except ServiceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return project_processes.alive(psutil.Process(pid))
    return False


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:150]
    return ""
