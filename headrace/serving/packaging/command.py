"""How a bento is served from this environment, as one process."""

from __future__ import annotations

import sys

from headrace.project import Project
from headrace.serving.packaging.bento import find_bento


def serve_command(project: Project, bento_tag: str, host: str, port: int, threads: int) -> tuple[list[str], dict[str, str]]:
    """The arguments and the variables (to add to the environment) of a process that serves `bento_tag` on `host:port`.

    The code comes from the bento, not from the working tree, so that an edit does not reach what is already released.
    It is ready when `GET /readyz` gives 200, and ends its requests on SIGTERM. Memory: one process, no supervisor.

    Raises:
        HeadraceError: the bento is not there.
    """
    bento = find_bento(project, bento_tag)
    arguments = [sys.executable, "-P", "-m", "bentos.serve", str(bento.path), "--host", host, "--port", str(port)]
    return arguments, {
        "PYTHONPATH": str(bento.path / "src"),
        "BENTOML_HOME": str(project.bentoml_home),
        "BENTOML_DO_NOT_TRACK": "true",
        "HEADRACE_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        # Two arenas instead of eight a core: the allocator's unused memory would count against every replica.
        "MALLOC_ARENA_MAX": "2",
    }
