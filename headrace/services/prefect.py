"""Prefect's server, which records the runs of flows, and its worker, which starts scheduled ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from typing import Any

from headrace.console import Report
from headrace.errors import ServiceError
from headrace.project import Project
from headrace.services import prefect_api
from headrace.services.authentication import credentials
from headrace.services.prefect_database import upgrade_database
from headrace.services.service import Server, Service, launch, wait_until_ready
from headrace.serving.replicas import supervisor
from headrace.tracking.database_templates import copy_template
from headrace.tracking.schema_migration import use_write_ahead_log

SERVER = "prefect-server"
WORKER = "prefect-worker"
WORK_POOL = "headrace"
WORKER_STOP_SECONDS = 10.0
JOB_TEMPLATE = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
"""No job variables: with those of Prefect's default template a run could be given a command and environment variables."""
FOREIGN_CREDENTIALS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_KEY")
"""Variables of a user's shell, for another server of Prefect. They would take precedence over the project's profile."""
MISSED_HEARTBEATS = 4
"""A worker that has missed this many heartbeats hangs."""
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""The server answers 503 while its database is locked by another request."""


def prefect_environment(project: Project) -> dict[str, str]:
    """Environment variables of every process that uses Prefect: flows, worker and server. Contains no secret."""
    return {
        "PREFECT_API_URL": f"{project.settings.prefect_address}/api",
        "PREFECT_HOME": str(project.state / "prefect"),
        "PREFECT_PROFILES_PATH": str(credentials.prefect_profiles(project)),
        "PREFECT_PROFILE": credentials.PROFILE,
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


def process_environment(project: Project) -> dict[str, str]:
    """The environment of this process for a child that uses Prefect."""
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_CREDENTIALS}
    return {**inherited, **prefect_environment(project)}


def server(project: Project) -> Server:
    """Prefect's API server, on loopback and with authentication: whoever may call it can run code."""
    program = supervisor.Program(
        SERVER,
        [sys.executable, "-m", "headrace.services.authentication", "prefect", str(project.settings.prefect_port)],
        {
            **prefect_environment(project),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
            "PREFECT_UI_API_URL": f"{project.settings.prefect_address}/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": project.settings.prefect_address,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        },
        stop_seconds=10.0,
        start_retries=10,
        priority=100,
        code=_code(project),
    )
    return Server(program, project.settings.prefect_address, lambda: _is_server_ready(project))


def worker(project: Project) -> Server:
    """Prefect's worker, which runs flows that were started in the UI or by a schedule."""
    program = supervisor.Program(
        WORKER,
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", "local"],
        {**prefect_environment(project), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"},
        stop_seconds=WORKER_STOP_SECONDS,
        start_retries=10,
        priority=200,
        code=_code(project),
    )
    return Server(program, f"pool {WORK_POOL}", lambda: _is_worker_online(project))


def launch_server(project: Project, report: Report) -> None:
    """Starts Prefect's server without waiting for it; a new project begins with a copy of a migrated database.

    The worker of a server that is replaced ends before it: it would log a traceback for each connection that is cut.

    Raises:
        NewerFile: a newer Prefect wrote the database.
    """
    credentials.make_credentials(project)
    database = project.state / "prefect" / "prefect.db"
    if not copy_template("prefect", database) and (kept := upgrade_database(database)):
        report(f"Prefect's database was migrated; the one from before is {kept.name}")
    if database.exists():
        use_write_ahead_log(database)
    if supervisor.has_changed(project, server(project).program):
        supervisor.stop(project, WORKER, WORKER_STOP_SECONDS)
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
    create_work_pool(project)
    launch(project, worker(project), report)
    if on_ready:
        on_ready()
    return [started, wait_until_ready(project, worker(project), report)]


def _code(project: Project) -> str:
    """Changes with Prefect's version and with the secret."""
    return f"{version('prefect')} {credentials.fingerprint(project, 'prefect')}"


def _is_server_ready(project: Project) -> bool:
    answer = prefect_api.call(project, "/health")
    return answer is not None and answer.status == 200 and answer.json_or_text() is True


def call(project: Project, method: str, path: str, body: Any = None) -> Any:
    """Sends a request to Prefect's API and returns the JSON of its answer; None for an empty one.

    Args:
        path: below `/api/`.

    Raises:
        ServiceError: the server does not answer, or answers with an error.
    """
    for wait in (*RETRY_SECONDS, None):
        answer = prefect_api.call(project, f"/{path}", method, body)
        if wait is None or answer is None or answer.status != 503:
            break
        time.sleep(wait)
    if answer is None or answer.status >= 400:
        reason = f"{answer.status}: {answer.text[:300]}" if answer else "no answer"
        raise ServiceError(
            f"Prefect's server did not accept {method} {path}: {reason}",
            where=f".headrace/logs/{SERVER}.log",
            hint="headrace up starts it again; then run the same command",
        )
    return answer.json() if answer.content else None


def create_work_pool(project: Project) -> None:
    """Creates a pool of type process, or gives one that exists, perhaps of an earlier version, the job template."""
    path = f"/work_pools/{WORK_POOL}"
    answer = prefect_api.call(project, path)
    if answer is not None and answer.status == 404:
        pool = {"name": WORK_POOL, "type": "process", "base_job_template": JOB_TEMPLATE}
        answer = prefect_api.call(project, "/work_pools/", "POST", pool)
    elif answer is not None and answer.status == 200 and answer.json().get("base_job_template") != JOB_TEMPLATE:
        answer = prefect_api.call(project, path, "PATCH", {"base_job_template": JOB_TEMPLATE})
    if answer is None or answer.status not in (200, 201, 204, 409):
        raise ServiceError(
            f"Prefect's server does not create the work pool {WORK_POOL!r}: {answer.text if answer else 'no answer'}",
            where=f".headrace/logs/{SERVER}.log",
            hint="headrace down, then headrace up",
        )


def _is_worker_online(project: Project) -> bool:
    """Whether this very worker process sends heartbeats: a killed predecessor stays ONLINE for a while."""
    program = supervisor.states(project).get(WORKER)
    if not program or not program.pid:
        return False
    try:
        workers = call(project, "POST", f"work_pools/{WORK_POOL}/workers/filter", {})
    except ServiceError:
        return False
    return any(_is_alive(found, program.started_at) for found in workers)


def _is_alive(worker: dict[str, Any], started_at: float) -> bool:
    """Whether it sends heartbeats: the server itself notices a worker that hangs after minutes only."""
    if worker["status"] != "ONLINE" or not worker["last_heartbeat_time"]:
        return False
    last = datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp()
    longest = MISSED_HEARTBEATS * (worker.get("heartbeat_interval_seconds") or 30)
    return last >= started_at and time.time() - last < longest
