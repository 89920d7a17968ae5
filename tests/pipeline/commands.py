"""DVC's command line in a project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from headrace.project import Project


def dvc(project: Project, *arguments: str) -> str:
    """Runs `dvc ARGUMENTS`, checks that it succeeds, and returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", *arguments], cwd=project.root, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
