"""Processes of a project's supervisord: found by a mark in their environment, and stopped when it left them behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.project import Project
from headrace.serving.replicas.programs import SUPERVISED, configuration_path

if TYPE_CHECKING:
    import psutil


def supervised_processes(project: Project) -> list[psutil.Process]:
    """Processes started by this project's supervisord, and their children, without the caller and its ancestors."""
    import psutil

    me = psutil.Process()
    excluded = {me.pid, *(parent.pid for parent in me.parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.pid not in excluded and process.uids().real == os.getuid() and alive(process)
            if ours and Path(process.environ().get(SUPERVISED, "")).name == project.label:
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop_leftovers(project: Project) -> None:
    """Stops a supervisord that does not answer and all processes that it left behind, and removes its socket."""
    stuck = find_supervisords(project)
    for process in stuck:
        process.terminate()
    if wait_gone(stuck, 3.0):  # stuck, or waiting for its programs, which are stopped below
        for process in stuck:
            _kill(process)
        wait_gone(stuck, 5.0)
    leftovers = supervised_processes(project)
    serving = [process for process in leftovers if _is_serving(project, process)]
    _terminate([process for process in leftovers if process not in serving])
    _terminate(serving)  # last, to keep their downtime short
    for name in ("supervisor.sock", "supervisord.pid"):
        (project.runtime_dir / name).unlink(missing_ok=True)


def _is_serving(project: Project, process: psutil.Process) -> bool:
    """Whether it is Envoy or a replica, by the name that supervisord gives each program."""
    try:
        name = process.environ().get("SUPERVISOR_PROCESS_NAME", "")
    except Exception:  # it has ended
        return False
    return name == "envoy" or (project.state / "replicas" / f"{name}.json").exists()


def _terminate(processes: list[psutil.Process]) -> None:
    """Sends SIGTERM, and SIGKILL to those that still run after 5 s."""
    for process in processes:
        with contextlib.suppress(Exception):
            process.terminate()
    for process in wait_gone(processes, 5.0):
        _kill(process)
    wait_gone(processes, 5.0)


def find_supervisords(project: Project) -> list[psutil.Process]:
    """Finds them by their command line, since the pid file may be missing or stale."""
    import psutil

    def is_ours(process: psutil.Process) -> bool:
        wanted, arguments = str(configuration_path(project)), process.info["cmdline"] or []
        earlier = f"/{project.label}/conf/supervisord.conf"  # where an earlier version kept the file
        mine = wanted in arguments or any(argument.endswith(earlier) for argument in arguments)
        return bool(mine and process.info["uids"].real == os.getuid() and alive(process))

    found = {process.pid: process for process in psutil.process_iter(["cmdline", "ppid", "uids"]) if is_ours(process)}
    # A process that supervisord has just forked has its command line until it runs the program.
    return [process for process in found.values() if process.info["ppid"] not in found]


def find_process(pid: int) -> list[psutil.Process]:
    """The process with this id, in a list; an empty one when it has ended."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid)]
    return []


def wait_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Waits up to `seconds`; returns the processes that are still alive."""
    deadline = time.monotonic() + seconds
    while (left := [p for p in processes if alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _kill(process: psutil.Process) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def kill_group(pid: int) -> None:
    """Sends SIGKILL to a process group, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
