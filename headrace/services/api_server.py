"""The API server (`headrace/services/api`) as one of the local servers."""

from __future__ import annotations

import sys

from headrace.console import Report
from headrace.project import Project
from headrace.services.service import Server, Service, launch, settings_environment, wait_until_ready
from headrace.serving.local_http import try_request
from headrace.serving.replicas import supervisor
from headrace.settings import LOOPBACK, Settings
from headrace.tracking.provenance import code_digest

SERVER = "api-server"


def server(project: Project) -> Server:
    """The API server, always on loopback: clients reach it through the gateway."""
    program = supervisor.Program(
        SERVER,
        [sys.executable, "-m", "headrace.services.api"],
        settings_environment(project),
        stop_seconds=25.0,
        start_retries=10,
        priority=550,
        code=code_digest(),
    )
    return Server(program, f"http://{LOOPBACK}:{project.settings.api_port}", lambda: _is_ready(project.settings))


def start(project: Project, report: Report) -> list[Service]:
    """Starts the API server and waits for it.

    Raises:
        ServiceError: the server does not start.
    """
    launch(project, server(project), report)
    return [wait_until_ready(project, server(project), report)]


def _is_ready(settings: Settings) -> bool:
    answer = try_request((LOOPBACK, settings.api_port), "/readyz")
    return answer is not None and answer.status == 200
