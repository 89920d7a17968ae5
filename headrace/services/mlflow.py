"""MLflow's server: the pages of runs and registered versions. Training and releases use its database directly."""

from __future__ import annotations

import sys
from importlib.metadata import version

from headrace.console import Report
from headrace.project import Project
from headrace.services.service import Server, Service, launch, wait_until_ready
from headrace.serving.local_http import try_request
from headrace.serving.replicas import supervisor
from headrace.settings import LOOPBACK, Settings
from headrace.tracking.database import artifact_root, initialise_tracking

SERVER = "mlflow"


def server(project: Project) -> Server:
    """MLflow's tracking server, always on loopback: it has no access control."""
    program = supervisor.Program(
        SERVER,
        # What `mlflow server` starts after setting these variables: without the parent process, which only waits, the
        # server is up in half the time and takes half the memory.
        [
            *(sys.executable, "-m", "uvicorn", "--host", LOOPBACK, "--port", str(project.settings.mlflow_port)),
            *("--workers", "1", "--log-level", "warning", "mlflow.server.fastapi_app:app"),
        ],
        {
            "_MLFLOW_SERVER_FILE_STORE": project.tracking_uri,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": artifact_root(project),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
        },
        stop_seconds=5.0,
        start_retries=10,
        priority=300,
        code=version("mlflow"),
    )
    return Server(program, project.settings.mlflow_address, lambda: _is_ready(project.settings))


def external(settings: Settings) -> Service | None:
    """The MLflow server that the setting `tracking_uri` names; None without that setting."""
    return None if settings.tracking_uri is None else Service(SERVER, "external", settings.tracking_uri)


def start(project: Project, report: Report) -> list[Service]:
    """Starts MLflow's server, unless the setting `tracking_uri` names another, and waits for it.

    Raises:
        ServiceError: the server does not start.
    """
    if found := external(project.settings):
        return [found]
    initialise_tracking(project)
    launch(project, server(project), report)
    return [wait_until_ready(project, server(project), report)]


def _is_ready(settings: Settings) -> bool:
    answer = try_request((LOOPBACK, settings.mlflow_port), "/health")
    return answer is not None and answer.status == 200
