"""What is killed: the flow's process, Prefect's worker, Prefect's server, or everything at once, as by a power cut."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import psutil

from headrace.project import Project
from headrace.serving.replicas import project_processes, supervisor

UNSUPERVISED = ("-m flows", "headrace.pipeline.stages", "headrace.services.up", "headrace.services.repairs", "bin/headrace")
"""Processes of a project that supervisord does not run."""


def processes_of(project: Project) -> list[psutil.Process]:
    """All processes of a project, without this one and its ancestors."""
    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}
    found = {p.pid: p for p in (*project_processes.find_supervisords(project), *supervisor.supervised_processes(project))}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in spared and project_processes.alive(process) and process.cwd() == str(project.root):
                found[process.pid] = process
    return list(found.values())


def kill_flow(project: Project, pid: int) -> None:
    """The flow's process alone: what it has started has to notice."""
    os.kill(pid, signal.SIGKILL)


def kill_worker(project: Project, pid: int) -> None:
    _kill_program(project, "prefect-worker")


def kill_server(project: Project, pid: int) -> None:
    _kill_program(project, "prefect-server")


def kill_machine(project: Project, pid: int) -> None:
    """Everything at once: all are stopped first, so that none sees another die."""
    for how in (signal.SIGSTOP, signal.SIGKILL):
        for process in (found := processes_of(project)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)
    project_processes.wait_gone(found, 20.0)


def _kill_program(project: Project, name: str) -> None:
    found = supervisor.states(project)[name].pid
    assert found, f"{name} does not run"
    os.kill(found, signal.SIGKILL)


VICTIMS: dict[str, Callable[[Project, int], None]] = {
    "flow": kill_flow,
    "worker": kill_worker,
    "server": kill_server,
    "machine": kill_machine,
}
"""By name: kills one of a project; the second argument is the process id of the flow."""
