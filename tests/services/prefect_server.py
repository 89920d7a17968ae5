"""A real Prefect server for tests, without supervisord and the other services."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.services import prefect
from headrace.services.authentication.credentials import make_credentials
from headrace.settings import Settings
from headrace.tracking.database_templates import copy_template
from tests.ports import free_port

START_SECONDS = 300.0


@contextmanager
def prefect_server(root: Path) -> Iterator[Project]:
    """Runs the Prefect server of a project in `root`, with Headrace's work pool; its scheduler is off: no run starts."""
    (root / "recipes").mkdir(exist_ok=True)
    (root / "dvc.yaml").touch()
    project = Project(root).using(Settings(prefect_port=free_port()))
    make_credentials(project)
    copy_template("prefect", project.state / "prefect" / "prefect.db")
    program = prefect.server(project).program
    environment = {**os.environ, **program.env, "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false"}
    project.logs.mkdir(parents=True, exist_ok=True)
    with (project.logs / "prefect-server.log").open("ab") as log:
        process = subprocess.Popen(program.argv, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_started(project):
            assert process.poll() is None and time.monotonic() < deadline, (project.logs / "prefect-server.log").read_text()
            time.sleep(0.2)
        yield project
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_started(project: Project) -> bool:
    if not prefect.server(project).is_ready():
        return False
    with suppress(ServiceError):  # it answers late on a busy machine
        prefect.create_work_pool(project)
        return True
    return False
