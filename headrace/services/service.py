"""What all local servers have in common: a program under supervisord, an address, and a check that it answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from headrace.console import Report
from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.replicas import supervisor

READY_SECONDS = 120.0
"""A server may take this long to answer on a busy machine."""
RESTART_SECONDS = 15.0
"""A server that another command restarts is stopped for a moment."""


@dataclass(frozen=True)
class Service:
    """One server and its state."""

    name: str
    state: str
    """`ready`; `degraded`: it runs but does not do its work; `starting`, `stopped`, `failed`; or `external` when a setting
    names a server that Headrace does not run."""
    address: str
    problem: str | None = None
    """What is wrong."""
    hint: str | None = None
    """The command that resolves it, or shows more."""

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


@dataclass(frozen=True)
class Server:
    """A server that supervisord runs."""

    program: supervisor.Program
    address: str
    is_ready: Callable[[], bool]
    """Sends it a real request."""
    problem: Callable[[], str | None] = lambda: None
    """Says why it does not do its work although it answers; None when it does."""
    note: Callable[[], str | None] = lambda: None
    """Says what else may be of interest while it works, for example errors in its log."""

    @property
    def name(self) -> str:
        return self.program.name

    def state(self, programs: dict[str, supervisor.ProgramState], is_expected: bool = False, in_depth: bool = False) -> Service:
        """Its state, from the states of all programs and a request to it.

        Args:
            is_expected: whether it should run; one that was stopped on purpose has no problem.
            in_depth: whether to look at what it does as well, with a few requests more.
        """
        program = programs.get(self.name)
        if program is None or program.state in ("stopped", "exited"):
            problem, hint = ("it does not run", "headrace up") if is_expected else (None, None)
            return Service(self.name, "stopped", self.address, problem, hint)
        log = f"headrace logs {self.name}"
        if program.state in ("failed", "failing"):
            return Service(
                self.name, "failed", self.address, f"it ended: {program.description}", f"{log}; headrace up starts it"
            )
        if not self.is_ready():
            seconds = time.time() - program.started_at
            if seconds < READY_SECONDS:
                return Service(self.name, "starting", self.address)
            problem = f"it does not answer, {seconds:.0f} s after its start"
            return Service(self.name, "degraded", self.address, problem, f"headrace up restarts it; {log}")
        problem = self.problem() if in_depth else None
        if problem:
            return Service(self.name, "degraded", self.address, problem, f"headrace down, then headrace up; {log}")
        note = self.note() if in_depth else None
        return Service(self.name, "ready", self.address, note, log if note else None)


def launch(project: Project, server: Server, report: Report) -> bool:
    """Starts a server, or restarts it when its command, settings or code have changed. False when it runs unchanged."""
    has_changed = supervisor.has_changed(project, server.program)
    launched = supervisor.add(project, server.program)
    if launched:
        change = "is restarting: its code or its settings have changed" if has_changed else "is starting"
        report(f"{server.name} {change}")
    return launched


def wait_until_ready(project: Project, server: Server, report: Report) -> Service:
    """Waits until a launched server answers; one that runs without answering is restarted once.

    Another command may wait for the same server, and restart it: then it has the whole time again.

    Raises:
        ServiceError: the server does not start; with the last lines of its log.
    """
    before = supervisor.states(project).get(server.name)
    reason = _wait(project, server)
    if reason is not None:
        _restart_once(project, server, before, reason, report)
        reason = _wait(project, server)
    if reason is not None:
        log = supervisor.tail(supervisor.log_path(project, server.name), 8).strip()
        raise ServiceError(
            f"{server.name} does not start: {reason}" + (f". The end of its log:\n{log}" if log else ""),
            where=f".headrace/logs/{server.name}.log",
            hint="headrace down, then headrace up",
        )
    return Service(server.name, "ready", server.address)


def _restart_once(
    project: Project, server: Server, before: supervisor.ProgramState | None, reason: str, report: Report
) -> None:
    """Restarts a server, unless another command has restarted it since it was in the state `before`."""
    from filelock import FileLock

    with FileLock(project.locks / f"restart-{server.name}.lock"):
        program = supervisor.states(project).get(server.name)
        if program is None:
            return
        if before is not None and program.started_at != before.started_at and program.state not in ("failed", "stopped"):
            return
        report(f"{server.name}: {reason}; restarting it")
        supervisor.restart(project, server.name, server.program.stop_seconds)


def _wait(project: Project, server: Server) -> str | None:
    """Returns None once the server is ready, else the reason why it is not."""
    began = ran = time.monotonic()
    while not server.is_ready():
        now = time.monotonic()
        state = supervisor.states(project).get(server.name)
        if state is None or state.state == "failed":
            return state.description if state else "it is not running"
        if state.state != "stopped":
            ran = now
        if now - ran > RESTART_SECONDS:
            return "it was stopped"
        if now - began > READY_SECONDS:
            return f"no answer within {READY_SECONDS:g} s"
        time.sleep(0.1)
    return None


def settings_environment(project: Project) -> dict[str, str]:
    """Environment variables that pass these settings to a child process, independent of supervisord's environment.

    `runner` is left out, since it belongs to one release: `headrace run --runner docker` restarts no server.
    """
    values = project.settings.model_dump(mode="json", exclude={"runner"}, exclude_none=True)
    variables = {f"HEADRACE_{name.upper()}": v if isinstance(v, str) else json.dumps(v) for name, v in values.items()}
    return {**variables, "HEADRACE_ROOT": str(project.root)}
