"""One supervisord a project: it keeps programs running after the terminal has gone, and starts them again when they die.

Programs are files in `.headrace/supervisor/programs/`, each written whole and read again by supervisord over XML-RPC. Its
socket and pid file are in `Project.runtime_dir`. Every program carries a mark in its environment, so that one that outlives a
killed supervisord is found and stopped before another takes its port.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import shutil
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable
from pathlib import Path

from headrace.errors import HeadraceError, ServiceError
from headrace.files import errors_collected, private_folder, write_text
from headrace.processes import bypass_proxies_on_loopback
from headrace.project import Project
from headrace.serving.replicas.programs import (
    SUPERVISED,
    Program,
    configuration_path,
    log_path,
    pid_file_option,
    program_path,
    programs_folder,
    render,
    socket_path,
    write_configuration,
)
from headrace.serving.replicas.project_processes import (
    find_process,
    find_supervisords,
    kill_group,
    stop_leftovers,
    supervised_processes,
    wait_gone,
)
from headrace.serving.replicas.supervisor_rpc import (
    ALREADY_ADDED,
    ALREADY_STARTED,
    BAD_NAME,
    NOT_RUNNING,
    ProgramState,
    connected,
    ignored,
    program_state,
    to_state,
)

__all__ = [
    "Program",
    "ProgramState",
    "add",
    "ensure_running",
    "has_changed",
    "is_up",
    "log_path",
    "program_path",
    "read_pid",
    "remove",
    "require_owner",
    "restart",
    "restart_killed",
    "shutdown",
    "socket_path",
    "states",
    "stop",
    "supervised_processes",
    "tail",
    "was_moved",
]

SUPERVISORD = ["-m", "headrace.serving.replicas.supervisord"]
REOPEN_SECONDS = 5.0
"""A living supervisord opens a removed socket again within a second, or three on a busy machine."""
START_SECONDS = 20.0


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
        with connected(project) as server:
            return bool(server.supervisor.getState()["statecode"] == 1)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return False


def read_pid(project: Project) -> int | None:
    """The process id that supervisord wrote when it started; None without such a file."""
    text = (_read(project.runtime_dir / "supervisord.pid") or "").strip()
    return int(text) if text.isdigit() else None


def require_owner(project: Project) -> None:
    """
    Raises:
        ServiceError: another user has started the project's services.
    """
    if not project.state.exists() or (owner := project.state.stat().st_uid) == os.getuid():
        return
    raise ServiceError(
        f"the services of this project belong to user {_user_name(owner)}, and this is user {_user_name(os.getuid())}",
        where=str(project.state),
        hint=f"run the command as {_user_name(owner)}, or, after headrace down, give the project to this user: "
        f"sudo chown -R {_user_name(os.getuid())} {shlex.quote(str(project.root))}",
    )


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def was_moved(project: Project) -> bool:
    """Whether services run that were started when the project's folder had another path, or by an older version."""
    text = _read(configuration_path(project))
    if text is None or pid_file_option(project) in text.splitlines():
        return False
    return is_up(project) or bool(find_supervisords(project))


def ensure_running(project: Project) -> None:
    """Starts supervisord, with all programs that have a file, unless it answers.

    A stuck one, and processes left by an earlier one, are stopped first.

    Raises:
        ServiceError: it does not start, or others can enter the folder of its socket.
    """
    if is_up(project):
        return
    from filelock import FileLock

    require_owner(project)
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "supervisor.lock"):
        _start_unless_up(project)


def restart_killed(project: Project) -> bool:
    """Starts supervisord again after it was killed, with all its programs. False when it answers or was shut down.

    The processes that it left behind are stopped first, since a new supervisord cannot adopt them.

    Raises:
        ServiceError: it does not start.
    """
    from filelock import FileLock

    with FileLock(project.locks / "supervisor.lock"):
        return any(programs_folder(project).glob("*.conf")) and _start_unless_up(project)


def _start_unless_up(project: Project) -> bool:
    """Starts supervisord, unless it answers, or will soon since only its socket was removed. The caller holds the lock."""
    if is_up(project):
        return False
    private_folder(project.runtime_dir)  # before anything is stopped
    deadline = time.monotonic() + REOPEN_SECONDS
    while not socket_path(project).exists() and time.monotonic() < deadline and find_supervisords(project):
        time.sleep(0.1)
    if is_up(project):
        return False
    stop_leftovers(project)
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
    with connected(project) as server:
        try:
            server.supervisor.reloadConfig()
        except xmlrpc.client.Fault:
            path.unlink(missing_ok=True)  # otherwise supervisord could not read any other file
            raise
        with ignored(ALREADY_ADDED):
            server.supervisor.addProcessGroup(program.name)
        with ignored(ALREADY_STARTED, ALREADY_ADDED):
            server.supervisor.startProcess(program.name, False)
    return True


def has_changed(project: Project, program: Program) -> bool:
    """Whether a program of this name was started with another command, environment or code, so that `add` would replace it."""
    return _read(program_path(project, program.name)) not in (None, render(project, program))


def stop(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program: SIGTERM to its process group, SIGKILL after `stop_seconds`. Does nothing if it does not run."""
    if not is_up(project):
        return
    with connected(project) as server:
        _wait_for_exec(project, [found] if (found := program_state(server, name)) else [])
        with ignored(BAD_NAME, NOT_RUNNING):
            server.supervisor.stopProcess(name, False)
        deadline = time.monotonic() + stop_seconds
        while (now := program_state(server, name)) is not None and now.state in ("stopping", "starting", "running"):
            if time.monotonic() > deadline and now.pid:
                kill_group(now.pid)
            time.sleep(0.05)


def remove(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program and removes it; its file is deleted last, so that an interrupted removal can be repeated."""
    stop(project, name, stop_seconds)
    if is_up(project):
        with connected(project) as server, ignored(BAD_NAME):
            server.supervisor.removeProcessGroup(name)
    program_path(project, name).unlink(missing_ok=True)


def restart(project: Project, name: str, stop_seconds: float) -> None:
    """Stops a program and starts it again."""
    stop(project, name, stop_seconds)
    with connected(project) as server, ignored(ALREADY_STARTED):
        server.supervisor.startProcess(name, False)


def states(project: Project) -> dict[str, ProgramState]:
    """The state of every program, by name; empty when supervisord does not run."""
    if not socket_path(project).exists():
        return {}
    try:
        with connected(project) as server:
            found = [to_state(info) for info in server.supervisor.getAllProcessInfo()]
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return {}
    return {state.name: state for state in found}


def shutdown(project: Project, stop_seconds: float = 10.0) -> list[OSError | HeadraceError]:
    """Stops every program and supervisord; leaves no process, socket or program file.

    Returns:
        Errors of files that could not be written or removed, for example on a read-only disk. No process is left then either.
    """
    from filelock import FileLock

    failures: list[OSError | HeadraceError] = []
    if not project.state.is_dir():
        return failures
    with contextlib.ExitStack() as held:
        with errors_collected(failures):  # nobody else can have the lock then
            project.locks.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(project.locks / "supervisor.lock"))
        _stop_all(project, stop_seconds, failures)
        for path in programs_folder(project).glob("*.conf"):
            with errors_collected(failures):
                path.unlink(missing_ok=True)
        for folder in (project.runtime_dir, project.sockets):
            shutil.rmtree(folder, ignore_errors=True)
    return failures


def _stop_all(project: Project, stop_seconds: float, failures: list[OSError | HeadraceError]) -> None:
    if is_up(project):
        _wait_for_exec(project, states(project).values())
        stopping = find_supervisords(project)
        with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error), connected(project) as server:
            stopping += find_process(server.supervisor.getPID())  # of a project that was moved: another command line
            server.supervisor.shutdown()
        wait_gone(stopping, stop_seconds + 5)
    with errors_collected(failures):
        stop_leftovers(project)


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
    # Without credentials of a shell for other servers, which Prefect and MLflow would use instead of the project's own.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (SUPERVISED, "PREFECT_API_KEY") and not name.endswith("_API_AUTH_STRING")
    }
    bypass_proxies_on_loopback(environment)  # supervisord keeps its environment, and programs inherit it
    with log.open("wb") as out:
        started = subprocess.run(
            [sys.executable, *SUPERVISORD, "-c", str(configuration_path(project))],
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


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
