"""The API server (`headrace/services/api`) as one of the local servers."""

from __future__ import annotations

import sys

from headrace.console import Report
from headrace.files import private_folder
from headrace.project import Project
from headrace.services.service import Server, Service, launch, settings_environment, wait_until_ready
from headrace.serving.local_http import try_request
from headrace.serving.replicas import supervisor
from headrace.tracking.provenance import code_digest

SERVER = "api-server"


def server(project: Project) -> Server:
    """The API server, on a Unix socket: clients reach it through the gateway."""
    program = supervisor.Program(
        SERVER,
        [sys.executable, "-m", "headrace.services.api"],
        settings_environment(project),
        stop_seconds=25.0,
        start_retries=10,
        priority=550,
        code=code_digest(),
    )
    return Server(program, f"unix:{project.api_socket.relative_to(project.root)}", lambda: _is_ready(project))


def start(project: Project, report: Report) -> list[Service]:
    """Starts the API server and waits for it.

    Raises:
        ServiceError: the server does not start, or other users can enter the folder of its socket.
    """
    private_folder(project.sockets)
    launch(project, server(project), report)
    return [wait_until_ready(project, server(project), report)]


def _is_ready(project: Project) -> bool:
    answer = try_request(project.api_socket, "/readyz")
    return answer is not None and answer.status == 200
