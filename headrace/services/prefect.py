"""Prefect's server, which records the runs of flows, and its worker, which starts scheduled ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version

from headrace.console import Report
from headrace.errors import ServiceError
from headrace.project import Project
from headrace.services.service import Server, Service, launch, wait_until_ready
from headrace.serving.local_http import try_request
from headrace.serving.replicas import supervisor
from headrace.settings import LOOPBACK, Settings
from headrace.tracking.database_templates import copy_template

SERVER = "prefect-server"
WORKER = "prefect-worker"
WORK_POOL = "headrace"


def prefect_environment(project: Project) -> dict[str, str]:
    """Environment variables of every process that uses Prefect: flows, worker and server."""
    return {
        "PREFECT_API_URL": f"{project.settings.prefect_address}/api",
        "PREFECT_HOME": str(project.state / "prefect"),
        "PREFECT_PROFILES_PATH": str(project.state / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # without a server a flow fails at once, not after 20 s
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLI_PROMPT": "false",
        # A flow waits at its end for the last heartbeat's second to pass; the longer the interval, the fewer events.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "300",
        # The console shows Headrace's own steps; every line of a run still goes to Prefect's UI.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
        "HEADRACE_ROOT": str(project.root),
    }


def server(project: Project) -> Server:
    """Prefect's API server, always on loopback: it has no access control."""
    program = supervisor.Program(
        SERVER,
        [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(project.settings.prefect_port)],
        {
            **prefect_environment(project),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
            "PREFECT_UI_API_URL": f"{project.settings.prefect_address}/api",
        },
        stop_seconds=10.0,
        start_retries=10,
        priority=100,
        code=version("prefect"),
    )
    return Server(program, project.settings.prefect_address, lambda: _is_server_ready(project.settings))


def worker(project: Project) -> Server:
    """Prefect's worker, which runs flows that were started in the UI or by a schedule."""
    program = supervisor.Program(
        WORKER,
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", "local"],
        {**prefect_environment(project), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"},
        stop_seconds=10.0,
        start_retries=10,
        priority=200,
        code=version("prefect"),
    )
    return Server(program, f"pool {WORK_POOL}", lambda: _is_worker_online(project))


def launch_server(project: Project, report: Report) -> None:
    """Starts Prefect's server without waiting for it; a new project begins with a copy of a migrated database."""
    copy_template("prefect", project.state / "prefect" / "prefect.db")
    launch(project, server(project), report)


def wait_for_server(project: Project, report: Report) -> Service:
    """Waits until Prefect's server answers.

    Raises:
        ServiceError: the server does not start.
    """
    return wait_until_ready(project, server(project), report)


def start(project: Project, report: Report, on_ready: Callable[[], object] | None = None) -> list[Service]:
    """Starts server and worker and waits for both. `on_ready` is called once the server and the work pool are ready.

    Raises:
        ServiceError: one of them does not start.
    """
    launch_server(project, report)
    started = wait_for_server(project, report)
    _create_work_pool(project.settings)
    launch(project, worker(project), report)
    if on_ready:
        on_ready()
    return [started, wait_until_ready(project, worker(project), report)]


def _is_server_ready(settings: Settings) -> bool:
    answer = try_request((LOOPBACK, settings.prefect_port), "/api/health")
    return answer is not None and answer.status == 200 and answer.json_or_text() is True


def _create_work_pool(settings: Settings) -> None:
    """Creates a pool of type process, unless it exists (409). The worker completes it when it starts."""
    pool = {"name": WORK_POOL, "type": "process"}
    answer = try_request((LOOPBACK, settings.prefect_port), "/api/work_pools/", method="POST", body=pool)
    if answer is None or answer.status not in (200, 201, 409):
        raise ServiceError(
            f"Prefect's server does not create the work pool {WORK_POOL!r}: {answer.text if answer else 'no answer'}",
            where=f".headrace/logs/{SERVER}.log",
            hint="headrace down, then headrace up",
        )


def _is_worker_online(project: Project) -> bool:
    """Whether this very worker process has sent a heartbeat: a killed predecessor stays ONLINE for a while."""
    program = supervisor.states(project).get(WORKER)
    path = f"/api/work_pools/{WORK_POOL}/workers/filter"
    answer = try_request((LOOPBACK, project.settings.prefect_port), path, method="POST", body={})
    if not program or not program.pid or not answer or answer.status != 200:
        return False
    return any(
        found["status"] == "ONLINE"
        and found["last_heartbeat_time"]
        and datetime.fromisoformat(found["last_heartbeat_time"]).timestamp() >= program.started_at
        for found in answer.json()
    )
