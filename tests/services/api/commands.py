"""Commands of `headrace` in the project of the local service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.services.api.server import LocalService

HEADRACE = str(Path(sys.executable).with_name("headrace"))


def run(
    service: LocalService, *arguments: str, token: str | None = None, as_json: bool = True
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in service.environment.items() if name != "HEADRACE_TOKEN"}
    if token is not None:
        environment["HEADRACE_TOKEN"] = token
    command = [HEADRACE, *arguments, *(["--json"] if as_json else [])]
    return subprocess.run(command, cwd=service.project.root, env=environment, capture_output=True, text=True, timeout=60)
