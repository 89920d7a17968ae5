"""What the keeper watches, and whether it answers. Light: files and sockets alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.files import read_json
from headrace.project import Project
from headrace.serving.local_http import request
from headrace.serving.replicas.programs import program_path
from headrace.serving.replicas.replica import Replica

ANSWER_SECONDS = 1.5
NOBODY = "nobody listens"
PROGRAMS = (("envoy", "HEADRACE_GATEWAY_ADMIN_PORT", "/ready"), ("desk", "HEADRACE_API_PORT", "/readyz"))
"""Programs that are watched as replicas are, where their port stands, and what they are asked."""


@dataclass(frozen=True)
class Watched:
    """A replica, or a program without a model."""

    name: str
    host: str
    port: int
    path: str = "/readyz"
    model: str = ""
    pool: str = "main"


def programs(project: Project) -> Iterator[Watched]:
    """Envoy and the desk, where they were started and this process was told their ports."""
    for name, variable, path in PROGRAMS:
        port = os.environ.get(variable)
        if port and program_path(project, name).exists():
            yield Watched(name, "127.0.0.1", int(port), path)


def replicas(project: Project) -> Iterator[Watched]:
    """All replicas that should serve. `door.served` says the same, and needs ten times the memory."""
    for model, found in (read_json(project.state / "door" / "models.json") or {}).items():
        for endpoint in found["endpoints"]:
            replica = Replica.from_dict(endpoint, model)
            yield Watched(replica.id, *replica.address, model=model, pool=replica.pool)


def unfinished(project: Project) -> list[str]:
    """Models with a version that is on trial, or serves and is not released yet: their release is alive, or was killed."""
    stored = read_json(project.state / "door" / "models.json") or {}
    on_trial = {one.model for one in replicas(project) if one.pool != "main"}
    return [model for model, found in stored.items() if model in on_trial or found.get("predecessors")]


def unready(one: Watched) -> str | None:
    """None when it is ready, else what it says."""
    try:
        status = request((one.host, one.port), one.path, timeout_seconds=ANSWER_SECONDS).status
    except ConnectionError:
        return NOBODY
    except OSError as error:
        return f"no answer: {error or type(error).__name__}"
    return None if status == 200 else f"{one.path} says {status}"
