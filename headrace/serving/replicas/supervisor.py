"""One supervisord a project: it keeps programs running after the terminal has gone, and starts them again when they die.

Programs are files in `.headrace/supervisor/programs/`, each written whole and read again by supervisord over XML-RPC. Its
socket and pid file lie in `Project.runtime_dir`. Every program carries a mark in its environment, so that one that outlives a
killed supervisord is found and stopped before another takes its port.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headrace.errors import ServiceError
from headrace.files import write_text
from headrace.project import Project
from headrace.serving.replicas.programs import (
    SUPERVISED,
    Program,
    configuration_path,
    log_path,
    program_path,
    programs_folder,
    render,
    socket_path,
    write_configuration,
)

if TYPE_CHECKING:
    import psutil

__all__ = [
    "Program",
    "ProgramState",
    "add",
    "ensure_running",
    "has_changed",
    "is_up",
    "log_path",
    "program_path",
    "remove",
    "restart",
    "restart_killed",
    "shutdown",
    "socket_path",
    "states",
    "stop",
    "supervised_processes",
    "tail",
]

STATES = {0: "stopped", 10: "starting", 20: "running", 30: "failing", 40: "stopping", 100: "exited", 200: "failed"}
"""supervisord's state codes (supervisor/states.py); `failing`: it ended while starting and is started again."""
ANSWER_SECONDS = 10.0
START_SECONDS = 20.0
BAD_NAME, ALREADY_ADDED, ALREADY_STARTED, NOT_RUNNING, SHUTTING_DOWN = 10, 90, 60, 70, 6
"""Fault codes of supervisor/xmlrpc.py."""

ProgramStateName = Literal["stopped", "starting", "running", "failing", "stopping", "exited", "failed", "unknown"]


@dataclass(frozen=True)
class ProgramState:
    """The state of a program, as supervisord reports it."""

    name: str
    state: ProgramStateName
    pid: int | None
    started_at: float
    """Seconds since the epoch; 0 if it has never run."""
    description: str


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket, with a time limit."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__()
        self._path, self._timeout_seconds = path, timeout_seconds

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=self._timeout_seconds)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout_seconds)
        sock.connect(str(self._path))
        connection.sock = sock
        return connection


def tail(path: Path, lines: int) -> str:
    """The last `lines` lines of a file; empty when it does not exist."""
    try:
        with path.open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - 400 * lines))
            return "\n".join(handle.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def is_up(project: Project) -> bool:
    """Whether supervisord answers."""
    if not socket_path(project).exists():
        return False
    try:
        with _server(project) as server:
            return bool(server.supervisor.getState()["statecode"] == 1)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return False


def ensure_running(project: Project) -> None:
    """Starts supervisord, with all programs that have a file, unless it answers.

    A stuck one, and processes left by an earlier one, are stopped first.

    Raises:
        ServiceError: it does not start.
    """
    if is_up(project):
        return
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "supervisor.lock"):
        if not is_up(project):
            _stop_leftovers(project)
            write_configuration(project)
            _spawn(project)


def restart_killed(project: Project) -> bool:
    """Starts supervisord again after it was killed, with all its programs. False when it answers or was shut down.

    The processes that it left behind are stopped first, since a new supervisord cannot adopt them.

    Raises:
        ServiceError: it does not start.
    """
    from filelock import FileLock

    with FileLock(project.locks / "supervisor.lock"):
        if is_up(project) or not any(programs_folder(project).glob("*.conf")):
            return False
        _stop_leftovers(project)
        write_configuration(project)
        _spawn(project)
    return True


def add(project: Project, program: Program) -> bool:
    """Starts `program`, and replaces one of the same name that `has_changed`. False when it runs unchanged.

    Raises:
        ServiceError: supervisord refuses it, or its command cannot be started.
    """
    ensure_running(project)
    path, text = program_path(project, program.name), render(project, program)
    before = _read(path)
    known = states(project).get(program.name) if before == text else None
    if known is not None and known.state in ("running", "starting"):
        return False
    if before is not None and before != text:
        remove(project, program.name, program.stop_seconds)
    if before != text:
        write_text(path, text)
    with _server(project) as server:
        try:
            server.supervisor.reloadConfig()
        except xmlrpc.client.Fault:
            path.unlink(missing_ok=True)  # otherwise supervisord could not read any other file
            raise
        with _ignored(ALREADY_ADDED):
            server.supervisor.addProcessGroup(program.name)
        with _ignored(ALREADY_STARTED, ALREADY_ADDED):
            server.supervisor.startProcess(program.name, False)
    return True


def has_changed(project: Project, program: Program) -> bool:
    """Whether a program of this name was started with another command, environment or code, so that `add` would replace it."""
    return _read(program_path(project, program.name)) not in (None, render(project, program))


def stop(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program: SIGTERM to its process group, SIGKILL after `stop_seconds`. Does nothing if it does not run."""
    if not is_up(project):
        return
    with _server(project) as server:
        _wait_for_exec(project, [found] if (found := _info(server, name)) else [])
        with _ignored(BAD_NAME, NOT_RUNNING):
            server.supervisor.stopProcess(name, False)
        deadline = time.monotonic() + stop_seconds
        while (now := _info(server, name)) is not None and now.state in ("stopping", "starting", "running"):
            if time.monotonic() > deadline and now.pid:
                _kill_group(now.pid)
            time.sleep(0.05)


def remove(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program and removes it; its file is deleted last, so that an interrupted removal can be repeated."""
    stop(project, name, stop_seconds)
    if is_up(project):
        with _server(project) as server, _ignored(BAD_NAME):
            server.supervisor.removeProcessGroup(name)
    program_path(project, name).unlink(missing_ok=True)


def restart(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program and starts it again."""
    stop(project, name, stop_seconds)
    with _server(project) as server, _ignored(ALREADY_STARTED):
        server.supervisor.startProcess(name, False)


def states(project: Project) -> dict[str, ProgramState]:
    """The state of every program, by name; empty when supervisord does not run."""
    if not socket_path(project).exists():
        return {}
    try:
        with _server(project) as server:
            found = [_state(info) for info in server.supervisor.getAllProcessInfo()]
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return {}
    return {state.name: state for state in found}


def shutdown(project: Project, stop_seconds: float = 10.0) -> None:
    """Stops every program and supervisord; leaves no process, socket or program file."""
    from filelock import FileLock

    if not project.state.is_dir():
        return
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "supervisor.lock"):
        if is_up(project):
            _wait_for_exec(project, states(project).values())
            with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error), _server(project) as server:
                server.supervisor.shutdown()
            _wait_gone(_find_supervisords(project), stop_seconds + 5)
        _stop_leftovers(project)
        for path in programs_folder(project).glob("*.conf"):
            path.unlink(missing_ok=True)
        shutil.rmtree(project.runtime_dir, ignore_errors=True)


def supervised_processes(project: Project) -> list[psutil.Process]:
    """Processes started by this project's supervisord, and their children, without the caller and its ancestors."""
    import psutil

    me = psutil.Process()
    excluded = {me.pid, *(parent.pid for parent in me.parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.pid not in excluded and process.uids().real == os.getuid() and alive(process)
            if ours and process.environ().get(SUPERVISED) == str(project.runtime_dir):
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for_exec(project: Project, programs: Iterable[ProgramState]) -> None:
    """Waits until forked processes run their program: until then they are copies of supervisord and ignore SIGTERM."""
    import psutil

    deadline = time.monotonic() + 2.0
    for program in programs:
        while program.state == "starting" and program.pid and time.monotonic() < deadline:
            try:
                if psutil.Process(program.pid).environ().get(SUPERVISED):
                    break
            except (psutil.Error, OSError):
                break
            time.sleep(0.01)


# -- supervisord itself


def _spawn(project: Project) -> None:
    log = project.logs / "supervisord.start.log"
    # Without this variable; otherwise a supervisord that a program starts would count as a leftover.
    environment = {name: value for name, value in os.environ.items() if name != SUPERVISED}
    with log.open("wb") as out:
        started = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration_path(project))],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            check=False,
        )
    deadline = time.monotonic() + START_SECONDS
    while not is_up(project):
        if started.returncode or time.monotonic() > deadline:
            output = tail(log, 5) or tail(project.logs / "supervisord.log", 5)
            raise ServiceError(
                f"supervisord does not start: {output.strip() or 'no output'}",
                where=str(log),
                hint="headrace down, then headrace up",
            )
        time.sleep(0.02)


def _stop_leftovers(project: Project) -> None:
    """Stops a supervisord that does not answer and all processes that it left behind, and removes its socket."""
    stuck = _find_supervisords(project)
    for process in stuck:
        process.terminate()
    if _wait_gone(stuck, 3.0):  # stuck, or waiting for its programs, which are stopped below
        for process in stuck:
            _kill(process)
        _wait_gone(stuck, 5.0)
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
    for process in _wait_gone(processes, 5.0):
        _kill(process)
    _wait_gone(processes, 5.0)


def _find_supervisords(project: Project) -> list[psutil.Process]:
    """Finds them by their command line, since the pid file may be missing or stale."""
    import psutil

    wanted = str(configuration_path(project))
    found = {p.pid: p for p in psutil.process_iter(["cmdline", "ppid"]) if wanted in (p.info["cmdline"] or []) and alive(p)}
    # A process that supervisord has just forked has its command line until it runs the program.
    return [process for process in found.values() if process.info["ppid"] not in found]


def _wait_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Waits up to `seconds`; returns the processes that are still alive."""
    deadline = time.monotonic() + seconds
    while (left := [p for p in processes if alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _kill(process: psutil.Process) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


# -- supervisord's XML-RPC interface


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _server(project: Project) -> Iterator[Any]:
    """The XML-RPC interface. Faults are raised as `ServiceError`, except those that `_ignored` catches."""
    transport = _UnixTransport(socket_path(project), ANSWER_SECONDS)
    with xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport, allow_none=True) as server:
        try:
            yield server
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == SHUTTING_DOWN:
                raise
            raise ServiceError(
                f"supervisord refused the request: {fault.faultString}",
                where=".headrace/logs/supervisord.log",
                hint="headrace down, then headrace up",
            ) from None


@contextlib.contextmanager
def _ignored(*faults: int) -> Iterator[None]:
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode not in faults:
            raise


def _info(server: Any, name: str) -> ProgramState | None:
    with _ignored(BAD_NAME):
        return _state(server.supervisor.getProcessInfo(name))
    return None


def _state(info: Mapping[str, Any]) -> ProgramState:
    state: Any = STATES.get(info["state"], "unknown")
    return ProgramState(info["name"], state, info["pid"] or None, float(info["start"]), info["spawnerr"] or info["description"])
