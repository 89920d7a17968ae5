"""MLflow's server: the pages of runs and registered versions. Training and releases use its database directly."""

from __future__ import annotations

import sys
from importlib.metadata import version

from headrace.console import Report
from headrace.data.sources.addresses import redacted
from headrace.project import Project
from headrace.services.authentication import credentials
from headrace.services.service import Server, Service, launch, wait_until_ready
from headrace.serving.local_http import try_request
from headrace.serving.replicas import supervisor
from headrace.settings import LOOPBACK, Settings
from headrace.tracking.database import artifact_root, initialise_tracking

SERVER = "mlflow"


def server(project: Project) -> Server:
    """MLflow's tracking server, on loopback and with authentication."""
    program = supervisor.Program(
        SERVER,
        # Serves what `mlflow server` does after setting these variables: without its parent process, which only waits, the
        # server is up in half the time and takes half the memory.
        [sys.executable, "-m", "headrace.services.authentication", "mlflow", str(project.settings.mlflow_port)],
        {
            "_MLFLOW_SERVER_FILE_STORE": project.tracking_uri,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": artifact_root(project),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
            "HEADRACE_ROOT": str(project.root),
        },
        stop_seconds=5.0,
        start_retries=10,
        priority=300,
        code=f"{version('mlflow')} {credentials.fingerprint(project, 'mlflow')}",
    )
    return Server(program, project.settings.mlflow_address, lambda: _is_ready(project), lambda: _query_problem(project))


def external(settings: Settings) -> Service | None:
    """The MLflow server that the setting `tracking_uri` names, without its password; None without that setting."""
    return None if settings.tracking_uri is None else Service(SERVER, "external", redacted(settings.tracking_uri))


def start(project: Project, report: Report) -> list[Service]:
    """Starts MLflow's server, unless the setting `tracking_uri` names another, and waits for it.

    Raises:
        ServiceError: the server does not start.
    """
    if found := external(project.settings):
        return [found]
    initialise_tracking(project)
    credentials.make_credentials(project)
    launch(project, server(project), report)
    return [wait_until_ready(project, server(project), report)]


def _is_ready(project: Project) -> bool:
    answer = try_request((LOOPBACK, project.settings.mlflow_port), "/health", headers=_authorization(project))
    return answer is not None and answer.status == 200


def _authorization(project: Project) -> dict[str, str]:
    return {"authorization": credentials.basic(credentials.credential(project, "mlflow") or "")}


def _query_problem(project: Project) -> str | None:
    """Says that MLflow cannot read its database: `/health` answers without it."""
    path = "/api/2.0/mlflow/experiments/search"
    answer = try_request(
        (LOOPBACK, project.settings.mlflow_port),
        path,
        method="POST",
        body={"max_results": 1},
        headers=_authorization(project),
        timeout_seconds=20.0,
    )
    if answer is not None and answer.status == 200:
        return None
    return f"it cannot list its experiments: {f'{answer.status}: {answer.text[:200]}' if answer else 'no answer'}"
