"""Registers the deployments in `prefect.yaml` with the local server, so that flows can be started from its UI."""

from __future__ import annotations

import os
import subprocess
import sys

from headrace.errors import ServiceError
from headrace.files import write_text
from headrace.project import Project
from headrace.services.prefect import prefect_environment
from headrace.tracking.provenance import sha256

SECONDS = 120


def register_deployments(project: Project) -> bool:
    """Registers the deployments, if `prefect.yaml` or the server's database is new. False when both are unchanged.

    Raises:
        ServiceError: Prefect refuses the file; with the end of its output.
    """
    stamp = _stamp(project)
    registered = project.state / "prefect" / "deployed"
    if registered.exists() and registered.read_text(encoding="utf-8") == stamp:
        return False
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "prefect.yaml"],
        cwd=project.root,
        env={**os.environ, **prefect_environment(project)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()[-1000:]
        raise ServiceError(
            f"Prefect refuses the deployments: {output}",
            where="prefect.yaml",
            hint="correct prefect.yaml, then run: headrace up",
        )
    write_text(registered, stamp)
    return True


def _stamp(project: Project) -> str:
    """Changes when `prefect.yaml` changes, or the server begins with a new database."""
    database = project.state / "prefect" / "prefect.db"
    return f"{sha256(project.root / 'prefect.yaml')} {database.stat().st_ino if database.exists() else 0}"
