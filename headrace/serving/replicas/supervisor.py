"""One supervisord a project: it keeps programs running after the terminal has gone, and starts them again when they die.

Programs are files in `.headrace/supervisor/programs/`, each written whole and read again by supervisord over XML-RPC. Its
socket and pid file lie in `Project.runtime`. Every program carries a mark in its environment, so that one that outlives a
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
    MARK,
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
    "differs",
    "ensure",
    "is_up",
    "log_path",
    "marked",
    "program_path",
    "remove",
    "restart",
    "revive",
    "shutdown",
    "socket_path",
    "states",
    "stop",
    "tail",
]

STATES = {0: "stopped", 10: "starting", 20: "running", 30: "failing", 40: "stopping", 100: "exited", 200: "failed"}
"""supervisord's state codes (supervisor/states.py) in our words; `failing`: died while starting, to be tried again."""
ANSWER_SECONDS = 10.0
START_SECONDS = 20.0
BAD_NAME, ALREADY_ADDED, ALREADY_STARTED, NOT_RUNNING, SHUTTING_DOWN = 10, 90, 60, 70, 6
"""Faults of supervisor/xmlrpc.py."""

ProgramStateName = Literal["stopped", "starting", "running", "failing", "stopping", "exited", "failed", "unknown"]


@dataclass(frozen=True)
class ProgramState:
    """What supervisord knows of a program."""

    name: str
    state: ProgramStateName
    pid: int | None
    started_at: float
    """Seconds since the epoch; 0 when it never ran."""
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
    """The last `lines` lines of a file that may be long or absent."""
    try:
        with path.open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - 400 * lines))
            return "\n".join(handle.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def is_up(project: Project) -> bool:
    """Whether supervisord answers. Quick also when nothing runs."""
    if not socket_path(project).exists():
        return False
    try:
        with _server(project) as server:
            return bool(server.supervisor.getState()["statecode"] == 1)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return False


def ensure(project: Project) -> None:
    """Starts supervisord unless it answers. A stuck one and what it left behind are stopped first.

    Every program whose file is there starts with it.

    Raises:
        ServiceError: it does not come up.
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


def revive(project: Project) -> bool:
    """Starts a supervisord that was killed again, with everything that it ran. False when it answers or was shut down.

    What it left behind runs on unwatched and is ended first, since a new supervisord cannot take it over.

    Raises:
        ServiceError: it does not come up.
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
    """Starts `program`, or leaves it be (False) when it runs just so already; one that `differs` is replaced.

    Raises:
        ServiceError: supervisord does not take it, or the command cannot be started at all.
    """
    ensure(project)
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
            path.unlink(missing_ok=True)  # left there it would keep supervisord from reading any other
            raise
        with _expected(ALREADY_ADDED):
            server.supervisor.addProcessGroup(program.name)
        with _expected(ALREADY_STARTED, ALREADY_ADDED):
            server.supervisor.startProcess(program.name, False)
    return True


def differs(project: Project, program: Program) -> bool:
    """Whether a program of this name was started with another command, environment or code: `add` would replace it."""
    return _read(program_path(project, program.name)) not in (None, render(project, program))


def stop(project: Project, name: str, stop_seconds: float) -> None:
    """SIGTERM to the program's process group, SIGKILL after `stop_seconds`. Stopping what does not run does nothing."""
    if not is_up(project):
        return
    with _server(project) as server:
        _wait_for_own_environment(project, [found] if (found := _info(server, name)) else [])
        with _expected(BAD_NAME, NOT_RUNNING):
            server.supervisor.stopProcess(name, False)
        deadline = time.monotonic() + stop_seconds
        while (now := _info(server, name)) is not None and now.state in ("stopping", "starting", "running"):
            if time.monotonic() > deadline and now.pid:
                _kill_group(now.pid)
            time.sleep(0.05)


def remove(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program and forgets it; its file goes last, so that a kill on the way leaves something to find."""
    stop(project, name, stop_seconds)
    if is_up(project):
        with _server(project) as server, _expected(BAD_NAME):
            server.supervisor.removeProcessGroup(name)
    program_path(project, name).unlink(missing_ok=True)


def restart(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program and starts it again."""
    stop(project, name, stop_seconds)
    with _server(project) as server, _expected(ALREADY_STARTED):
        server.supervisor.startProcess(name, False)


def states(project: Project) -> dict[str, ProgramState]:
    """Every program that supervisord knows, by name; empty when supervisord is not up."""
    if not socket_path(project).exists():
        return {}
    try:
        with _server(project) as server:
            found = [_state(info) for info in server.supervisor.getAllProcessInfo()]
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return {}
    return {state.name: state for state in found}


def shutdown(project: Project, stop_seconds: float = 10.0) -> None:
    """Stops every program and supervisord, and leaves no process, no socket and no program file."""
    from filelock import FileLock

    if not project.state.is_dir():
        return
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "supervisor.lock"):
        if is_up(project):
            _wait_for_own_environment(project, states(project).values())
            with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error), _server(project) as server:
                server.supervisor.shutdown()
            _wait_gone(_supervisords(project), stop_seconds + 5)
        _stop_leftovers(project)
        for path in programs_folder(project).glob("*.conf"):
            path.unlink(missing_ok=True)
        shutil.rmtree(project.runtime, ignore_errors=True)


def marked(project: Project) -> list[psutil.Process]:
    """Processes that this project's supervisord started, and their children, except the caller and its ancestors."""
    import psutil

    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.pid not in spared and process.uids().real == os.getuid() and alive(process)
            if ours and process.environ().get(MARK) == str(project.runtime):
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie that nobody has reaped does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_for_own_environment(project: Project, programs: Iterable[ProgramState]) -> None:
    """A process just forked is still supervisord's copy and would swallow SIGTERM; wait until it is the program."""
    import psutil

    deadline = time.monotonic() + 2.0
    for program in programs:
        while program.state == "starting" and program.pid and time.monotonic() < deadline:
            try:
                if psutil.Process(program.pid).environ().get(MARK):
                    break
            except (psutil.Error, OSError):
                break
            time.sleep(0.01)


# -- supervisord itself


def _spawn(project: Project) -> None:
    log = project.logs / "supervisord.start.log"
    # Without the mark, else a supervisord that a program starts would look like a leftover itself.
    environment = {name: value for name, value in os.environ.items() if name != MARK}
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
            said = tail(log, 5) or tail(project.logs / "supervisord.log", 5)
            raise ServiceError(
                f"supervisord does not start: {said.strip() or 'no word from it'}",
                where=str(log),
                hint="headrace down, then headrace up",
            )
        time.sleep(0.02)


def _stop_leftovers(project: Project) -> None:
    """Ends a supervisord that does not answer, then every process that one left behind, then removes its socket."""
    unanswering = _supervisords(project)
    for process in unanswering:
        process.terminate()
    if _wait_gone(unanswering, 3.0):  # stuck, or waiting for its own programs: those are ended below
        for process in unanswering:
            _kill(process)
        _wait_gone(unanswering, 5.0)
    leftovers = marked(project)
    serving = [process for process in leftovers if _is_serving(project, process)]
    _end([process for process in leftovers if process not in serving])
    _end(serving)  # last, so that they are away for as short as can be
    for name in ("supervisor.sock", "supervisord.pid"):
        (project.runtime / name).unlink(missing_ok=True)


def _is_serving(project: Project, process: psutil.Process) -> bool:
    """Whether it is Envoy or a replica: supervisord tells each program its name."""
    try:
        name = process.environ().get("SUPERVISOR_PROCESS_NAME", "")
    except Exception:  # gone meanwhile
        return False
    return name == "envoy" or (project.state / "replicas" / f"{name}.json").exists()


def _end(processes: list[psutil.Process]) -> None:
    """SIGTERM, and SIGKILL for those that are there after 5 s."""
    for process in processes:
        with contextlib.suppress(Exception):
            process.terminate()
    for process in _wait_gone(processes, 5.0):
        _kill(process)
    _wait_gone(processes, 5.0)


def _supervisords(project: Project) -> list[psutil.Process]:
    """Found by their command line, since the pid file may be gone or stale."""
    import psutil

    wanted = str(configuration_path(project))
    found = {p.pid: p for p in psutil.process_iter(["cmdline", "ppid"]) if wanted in (p.info["cmdline"] or []) and alive(p)}
    # One that supervisord just forked has its command line until it becomes the program.
    return [process for process in found.values() if process.info["ppid"] not in found]


def _wait_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those still alive after `seconds`."""
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


# -- its answers


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _server(project: Project) -> Iterator[Any]:
    """The XML-RPC interface; its faults leave as `ServiceError` unless `_expected` catches them first."""
    transport = _UnixTransport(socket_path(project), ANSWER_SECONDS)
    with xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport, allow_none=True) as server:
        try:
            yield server
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == SHUTTING_DOWN:
                raise
            raise ServiceError(
                f"supervisord refuses: {fault.faultString}",
                where=".headrace/logs/supervisord.log",
                hint="headrace down, then headrace up",
            ) from None


@contextlib.contextmanager
def _expected(*faults: int) -> Iterator[None]:
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode not in faults:
            raise


def _info(server: Any, name: str) -> ProgramState | None:
    with _expected(BAD_NAME):
        return _state(server.supervisor.getProcessInfo(name))
    return None


def _state(info: Mapping[str, Any]) -> ProgramState:
    state: Any = STATES.get(info["state"], "unknown")
    return ProgramState(info["name"], state, info["pid"] or None, float(info["start"]), info["spawnerr"] or info["description"])
