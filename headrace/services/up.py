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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from headrace.console import Report
from headrace.errors import HeadraceError
from headrace.project import Project, find_project
from headrace.services import api_server, mlflow, prefect, watchdog
from headrace.services.service import Server, Service, launch, settings_environment
from headrace.serving.gateway import envoy_process, gateway
from headrace.serving.replicas import ports, runners, supervisor
from headrace.serving.replicas.programs import SUPERVISED, programs_folder
from headrace.settings import LOOPBACK, Settings, load_settings
from headrace.tracking.provenance import code_digest

NAMES = (prefect.SERVER, prefect.WORKER, mlflow.SERVER, gateway.PROGRAM, api_server.SERVER, watchdog.SERVER)
HEADRACE_COMMAND = re.compile(r"^command=\S+ -m headrace\.", re.MULTILINE)
BACKGROUND_NICENESS = 5
BACKGROUND_SECONDS = 180.0


def servers(project: Project, settings: Settings) -> list[Server]:
    """All servers that supervisord runs with these settings, in the order of `NAMES`."""
    found = [prefect.server(project, settings), prefect.worker(project, settings)]
    if mlflow.external(settings) is None:
        found.append(mlflow.server(project, settings))
    return [*found, _gateway(project, settings), api_server.server(project, settings), _watchdog(project, settings)]


def up(
    project: Project, settings: Settings, report: Report, on_prefect_ready: Callable[[], object] | None = None
) -> list[Service]:
    """Starts the servers that do not run, restarts `outdated` ones, all in parallel, and waits until each answers.

    Args:
        on_prefect_ready: called once Prefect's server and its work pool are ready, for example to register deployments.

    Raises:
        PortTaken: another program holds a port; with its process id and the setting that changes the port.
        ServiceError: a server does not start; with the last lines of its log.
    """
    _prepare(project, settings)
    with _lock(project), ThreadPoolExecutor(3) as pool:
        prefect_starts = pool.submit(prefect.start, project, settings, report, on_prefect_ready)
        mlflow_starts = pool.submit(mlflow.start, project, settings, report)
        # In this order: the API server must not accept requests without a token before the gateway does.
        envoy_process.start(project, settings)
        gateway_service = Service(gateway.PROGRAM, "ready", gateway.address(settings))
        api_services = api_server.start(project, settings, report)
        launch(project, _watchdog(project, settings), report)
        watchdog_service = Service(watchdog.SERVER, "ready", "")
        return [*prefect_starts.result(), *mlflow_starts.result(), gateway_service, *api_services, watchdog_service]


def start_for_release(project: Project, settings: Settings, report: Report) -> None:
    """Starts Prefect's server and the gateway, and leaves all other servers to a background process.

    Returns when the gateway answers. The flow waits for Prefect's server after its imports (`prefect.wait_for_server`), and
    for the others at its end (`wait_for_background`).

    Raises:
        PortTaken: another program holds a port.
        ServiceError: the gateway does not start.
    """
    _prepare(project, settings)
    with _lock_path(project).open("a") as lock, (project.logs / "up.log").open("ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)  # inherited: held until the background process releases it or ends
        prefect.launch_server(project, settings, report)
        envoy_process.start(project, settings)
        subprocess.Popen(
            [sys.executable, "-m", "headrace.services.up", str(lock.fileno())],
            cwd=project.root,
            # With supervisord's mark, so that `down` ends it as well.
            env={**os.environ, **settings_environment(project, settings), SUPERVISED: str(project.runtime_dir)},
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


def outdated(project: Project, settings: Settings) -> list[str]:
    """Names of the servers that `up` would restart or reconfigure because their code or settings have changed."""
    found = {server.name for server in servers(project, settings) if supervisor.has_changed(project, server.program)}
    if not gateway.runs_with_settings(project, settings):
        found.add(gateway.PROGRAM)
    return sorted(found)


def down(project: Project, settings: Settings, report: Report | None = None) -> None:
    """Waits for requests in progress, stops every server and replica, and frees their ports. Safe when nothing runs."""
    # First, so that nothing is stopped when the record of what serves is damaged.
    endpoints = [e for found in gateway.read_routes(project).values() for e in (*found.endpoints, *found.previous)]
    with contextlib.suppress(HeadraceError):
        envoy_process.stop(project, settings, settings.drain_seconds)
    if "docker" in {endpoint.runner for endpoint in endpoints} | {settings.runner}:
        with contextlib.suppress(HeadraceError):  # without an engine there are no containers
            engine = runners.runner_for(project, settings, "docker")
            for replica in engine.list():
                if report:
                    report(f"stopping {replica.id}")
                engine.stop(replica, settings.drain_seconds)
    gateway.remove_all_models(project, settings)
    supervisor.shutdown(project, stop_seconds=settings.drain_seconds)
    for path in (project.state / "replicas").glob("*.json"):
        path.unlink(missing_ok=True)


def _gateway(project: Project, settings: Settings) -> Server:
    program = envoy_process.program(project, settings)
    return Server(program, gateway.address(settings), lambda: envoy_process.is_ready(project, settings))


def _watchdog(project: Project, settings: Settings) -> Server:
    program = watchdog.program(settings_environment(project, settings), settings.ready_seconds)
    return Server(replace(program, code=code_digest()), "", lambda: True)


def _prepare(project: Project, settings: Settings) -> None:
    """Removes servers that an older version ran under other names, starts supervisord, and checks the ports.

    Raises:
        PortTaken: a port is held by a process that this project's supervisord did not start.
        ServiceError: supervisord does not start.
    """
    for path in programs_folder(project).glob("*.conf"):
        if path.stem not in NAMES and HEADRACE_COMMAND.search(path.read_text(encoding="utf-8")):
            supervisor.remove(project, path.stem, stop_seconds=25.0)
    supervisor.ensure_running(project)
    _require_ports(project, settings)


def _require_ports(project: Project, settings: Settings) -> None:
    wanted = [
        (settings.prefect_port, "prefect_port", LOOPBACK),
        (settings.gateway_port, "gateway_port", settings.host),
        (settings.gateway_admin_port, "gateway_admin_port", LOOPBACK),
        (settings.api_port, "api_port", LOOPBACK),
    ]
    if mlflow.external(settings) is None:
        wanted.append((settings.mlflow_port, "mlflow_port", LOOPBACK))
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
    settings = load_settings(project)
    try:
        prefect.wait_for_server(project, settings, watchdog.log)
        api_server.start(project, settings, watchdog.log)
        launch(project, _watchdog(project, settings), watchdog.log)
        prefect.start(project, settings, watchdog.log)
        mlflow.start(project, settings, watchdog.log)
        os.close(lock)  # the release does not wait for the deployments
        register_deployments(project, settings)
    except HeadraceError as error:
        watchdog.log(f"error {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
