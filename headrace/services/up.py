"""Starts and stops the local servers: Prefect's server and worker, MLflow, Envoy, the API server and the watchdog.

`python -m headrace.services.up` is what a release leaves running in the background: it starts the servers that the release
does not wait for, one after the other, and ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from headrace.console import Report, log
from headrace.errors import HeadraceError
from headrace.files import errors_collected
from headrace.permissions import make_private
from headrace.processes import as_headrace_error
from headrace.project import Project, find_project
from headrace.services import api_server, mlflow, prefect, prefect_checks, watchdog
from headrace.services.backup.state import require_restored
from headrace.services.service import Server, Service, launch, settings_environment
from headrace.serving.gateway import envoy_process, gateway
from headrace.serving.replicas import ports, runners, supervisor
from headrace.serving.replicas.programs import SUPERVISED, programs_folder
from headrace.settings import LOOPBACK
from headrace.tracking.provenance import code_digest

NAMES = (prefect.SERVER, prefect.WORKER, mlflow.SERVER, gateway.PROGRAM, api_server.SERVER, watchdog.SERVER)
HEADRACE_COMMAND = re.compile(r"^command=\S+ -m headrace\.", re.MULTILINE)
BACKGROUND_NICENESS = 5
BACKGROUND_SECONDS = 180.0
LISTED_FILES = 10


def servers(project: Project) -> list[Server]:
    """All servers that supervisord runs with these settings, in the order of `NAMES`."""
    found = [
        replace(
            prefect.server(project),
            problem=lambda: prefect_checks.server_problem(project),
            note=lambda: prefect_checks.server_errors(supervisor.log_path(project, prefect.SERVER)),
        ),
        replace(prefect.worker(project), problem=lambda: prefect_checks.worker_problem(project)),
    ]
    if mlflow.external(project.settings) is None:
        found.append(mlflow.server(project))
    return [*found, _gateway(project), api_server.server(project), _watchdog(project)]


def up(project: Project, report: Report, on_prefect_ready: Callable[[], object] | None = None) -> list[Service]:
    """Starts the servers that do not run, restarts `outdated` ones, all in parallel, and waits until each answers.

    Args:
        on_prefect_ready: called once Prefect's server and its work pool are ready, for example to register deployments.

    Raises:
        PortTaken: another program holds a port; with its process id and the setting that changes the port.
        ServiceError: a server does not start; with the last lines of its log.
    """
    _prepare(project, report)
    with _lock(project), ThreadPoolExecutor(3) as pool:
        prefect_starts = pool.submit(prefect.start, project, report, on_prefect_ready)
        mlflow_starts = pool.submit(mlflow.start, project, report)
        # In this order: the API server must not accept requests without a token before the gateway does.
        envoy_process.start(project)
        gateway_service = Service(gateway.PROGRAM, "ready", gateway.address(project.settings))
        api_services = api_server.start(project, report)
        launch(project, _watchdog(project), report)
        watchdog_service = Service(watchdog.SERVER, "ready", "")
        return [*prefect_starts.result(), *mlflow_starts.result(), gateway_service, *api_services, watchdog_service]


def start_for_release(project: Project, report: Report) -> None:
    """Starts Prefect's server and the gateway, and leaves all other servers to a background process.

    Returns when the gateway answers. The flow waits for Prefect's server after its imports (`prefect.wait_for_server`), and
    for the others at its end (`wait_for_background`).

    Raises:
        PortTaken: another program holds a port.
        ServiceError: the gateway does not start.
    """
    _prepare(project, report)
    with _lock_path(project).open("a") as lock, (project.logs / "up.log").open("ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)  # inherited: held until the background process releases it or ends
        prefect.launch_server(project, report)
        envoy_process.start(project)
        subprocess.Popen(
            [sys.executable, "-m", "headrace.services.up", str(lock.fileno())],
            cwd=project.root,
            # With supervisord's mark, so that `down` ends it as well.
            env={**os.environ, **settings_environment(project), SUPERVISED: project.label},
            pass_fds=[lock.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_for_background(project: Project) -> None:
    """Waits until the background process of `start_for_release` has started all servers, or has failed to."""
    with contextlib.suppress(Timeout), _lock(project, BACKGROUND_SECONDS):
        pass


def outdated(project: Project) -> list[str]:
    """Names of the servers that `up` would restart or reconfigure because their code or settings have changed."""
    found = {server.name for server in servers(project) if supervisor.has_changed(project, server.program)}
    if not gateway.runs_with_settings(project):
        found.add(gateway.PROGRAM)
    return sorted(found)


def down(project: Project, report: Report | None = None) -> None:
    """Waits for requests in progress, stops every server and replica, and frees their ports. Safe when nothing runs.

    Raises:
        HeadraceError: everything has been stopped, but files could not be written or removed, for example on a read-only disk.
        DamagedFile: the record of what serves is damaged; nothing has been stopped.
    """
    # First, so that nothing is stopped when the record of what serves is damaged.
    endpoints = [e for found in gateway.read_routes(project).values() for e in (*found.endpoints, *found.previous)]
    failures: list[OSError | HeadraceError] = []
    with errors_collected(failures), contextlib.suppress(HeadraceError):
        envoy_process.stop(project, project.settings.drain_seconds)
    if "docker" in {endpoint.runner for endpoint in endpoints} | {project.settings.runner}:
        with errors_collected(failures), contextlib.suppress(HeadraceError):  # without an engine there are no containers
            engine = runners.runner_for(project, "docker")
            for replica in engine.list():
                if report:
                    report(f"stopping {replica.id}")
                engine.stop(replica, project.settings.drain_seconds)
    with errors_collected(failures):
        gateway.remove_all_models(project)
    failures += supervisor.shutdown(project, stop_seconds=project.settings.drain_seconds)
    for path in (project.state / "replicas").glob("*.json"):
        with errors_collected(failures):
            path.unlink(missing_ok=True)
    if failures:
        raise _not_written(project, failures)


def _not_written(project: Project, failures: Sequence[OSError | HeadraceError]) -> HeadraceError:
    """One error for all files, with the reason and the hint of the first."""
    first = as_headrace_error(failures[0])
    reason, hint = (first.message, first.hint) if first else (str(failures[0]), "correct that, then run the same command")
    places = [Path(place) for error in failures if (place := getattr(error, "filename", None) or getattr(error, "where", None))]
    names = dict.fromkeys(str(path.relative_to(project.root) if path.is_relative_to(project.root) else path) for path in places)
    shown = [*names][:LISTED_FILES] + ([f"{len(names) - LISTED_FILES} more"] if len(names) > LISTED_FILES else [])
    return HeadraceError(
        f"everything is stopped, but not all files could be written or removed: {reason} ({', '.join(shown)})",
        where=str(project.state),
        hint=hint,
    )


def stop_if_moved(project: Project, report: Report) -> None:
    """Stops services that were started when the project's folder had another path: nothing can be added to them.

    Raises:
        ServiceError: another user has started them.
    """
    supervisor.require_owner(project)
    if supervisor.was_moved(project):
        report("the project's folder was moved, or Headrace upgraded, while services ran: they are stopped and started again")
        down(project, report)


def _gateway(project: Project) -> Server:
    program = envoy_process.program(project)
    return Server(program, gateway.address(project.settings), lambda: envoy_process.is_ready(project))


def _watchdog(project: Project) -> Server:
    program = watchdog.program(settings_environment(project), project.settings.ready_seconds)
    return Server(replace(program, code=code_digest()), "", lambda: True)


def _prepare(project: Project, report: Report) -> None:
    """Stops what was started under another path, or by an older version; removes what a power cut left half-written, corrects
    permissions, starts supervisord, and checks the ports.

    Raises:
        PermissionError: a folder of the project belongs to another user.
        HeadraceError: a restore was interrupted.
        PortTaken: a port is held by a process that this project's supervisord did not start.
        ServiceError: supervisord does not start.
    """
    require_restored(project)
    stop_if_moved(project, report)
    project.remove_partial_files()
    make_private(project)
    for path in programs_folder(project).glob("*.conf"):
        if path.stem not in NAMES and HEADRACE_COMMAND.search(path.read_text(encoding="utf-8")):
            supervisor.remove(project, path.stem, stop_seconds=25.0)
    supervisor.ensure_running(project)
    _require_ports(project)


def _require_ports(project: Project) -> None:
    wanted = [
        (project.settings.prefect_port, "prefect_port", LOOPBACK),
        (project.settings.gateway_port, "gateway_port", project.settings.host),
        (project.settings.gateway_admin_port, "gateway_admin_port", LOOPBACK),
    ]
    if mlflow.external(project.settings) is None:
        wanted.append((project.settings.mlflow_port, "mlflow_port", LOOPBACK))
    ports.require_ports(wanted, lambda: {process.pid for process in supervisor.supervised_processes(project)})


def _lock(project: Project, timeout_seconds: float = -1) -> FileLock:
    """Held while servers are started, so that two processes do not start the same one."""
    return FileLock(_lock_path(project), timeout=timeout_seconds)


def _lock_path(project: Project) -> Path:
    project.locks.mkdir(parents=True, exist_ok=True)
    return project.locks / "up.lock"


def main(lock: int) -> int:
    """Starts what `start_for_release` has left, one server at a time, to leave most of the processor to the release.

    Args:
        lock: file descriptor that holds the lock.
    """
    from headrace.services.prefect_deployments import register_deployments

    os.nice(BACKGROUND_NICENESS)
    project = find_project()
    try:
        prefect.wait_for_server(project, log)
        api_server.start(project, log)
        launch(project, _watchdog(project), log)
        prefect.start(project, log)
        mlflow.start(project, log)
        os.close(lock)  # the release does not wait for the deployments
        register_deployments(project, log)
    except HeadraceError as error:
        log(f"error {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
