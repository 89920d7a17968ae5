"""Registers the deployments in `prefect.yaml` with the local server, so that flows can be started from its UI."""

from __future__ import annotations

import os
import subprocess
import sys

from headrace.errors import ServiceError
from headrace.files import write_text
from headrace.project import Project
from headrace.services.orchestrate import prefect_environment
from headrace.settings import Settings
from headrace.tracking.provenance import sha256

SECONDS = 120


def register_in_background(project: Project, settings: Settings) -> None:
    """Registers them in a process of its own: a release need not wait for what only Prefect's UI uses."""
    with (project.logs / "deployments.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "headrace.services.prefect_deployments"],
            cwd=project.root,
            env={**os.environ, "HEADRACE_ROOT": str(project.root)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def register_deployments(project: Project, settings: Settings) -> bool:
    """Whether there was anything to register: `prefect.yaml` or the server's database is new.

    Raises:
        ServiceError: Prefect does not take the file; with what it said.
    """
    wanted = _stamp(project)
    kept = project.state / "prefect" / "deployed"
    if kept.exists() and kept.read_text(encoding="utf-8") == wanted:
        return False
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "prefect.yaml"],
        cwd=project.root,
        env={**os.environ, **prefect_environment(project, settings)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-1000:]
        raise ServiceError(
            f"Prefect does not take the deployments: {said}",
            where="prefect.yaml",
            hint="correct prefect.yaml, then: headrace up",
        )
    write_text(kept, wanted)
    return True


def _stamp(project: Project) -> str:
    """Another one when the file changes, or the server starts with a new database."""
    database = project.state / "prefect" / "prefect.db"
    return f"{sha256(project.root / 'prefect.yaml')} {database.stat().st_ino if database.exists() else 0}"


if __name__ == "__main__":
    from headrace.project import find_project
    from headrace.settings import load_settings

    here = find_project()
    register_deployments(here, load_settings(here))
