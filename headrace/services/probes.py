"""What the watchdog checks, and how. Imports little, since the watchdog runs for as long as the services do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.project import Project
from headrace.serving.gateway.models_file import read_models
from headrace.serving.local_http import request
from headrace.serving.replicas.programs import program_path
from headrace.serving.replicas.replica import Replica

ANSWER_SECONDS = 1.5
NOT_LISTENING = "not listening"
PROGRAMS = (("envoy", "HEADRACE_GATEWAY_ADMIN_PORT", "/ready"), ("api-server", "HEADRACE_API_PORT", "/readyz"))
"""Programs that are checked like replicas: name, environment variable with the port, path of the health check."""


@dataclass(frozen=True)
class Target:
    """A replica, or a program without a model."""

    name: str
    host: str
    port: int
    path: str = "/readyz"
    model: str = ""
    pool: str = "main"


def programs(project: Project) -> Iterator[Target]:
    """Envoy and the API server, if they were started and the environment has their ports."""
    for name, variable, path in PROGRAMS:
        port = os.environ.get(variable)
        if port and program_path(project, name).exists():
            yield Target(name, "127.0.0.1", int(port), path)


def replicas(project: Project) -> Iterator[Target]:
    """All replicas that should serve. `gateway.read_routes` gives the same, with imports that take ten times the memory."""
    for model, found in read_models(project).items():
        for endpoint in found["endpoints"]:
            replica = Replica.from_dict(endpoint, model)
            yield Target(replica.id, *replica.address, model=model, pool=replica.pool)


def interrupted_models(project: Project) -> list[str]:
    """Models with a version that is on trial, or serves without being recorded: their release is running, or was killed."""
    stored = read_models(project)
    on_trial = {target.model for target in replicas(project) if target.pool != "main"}
    return [model for model, found in stored.items() if model in on_trial or found.get("previous") or found.get("predecessors")]


def failure(target: Target) -> str | None:
    """Returns why the target is not ready; None when it is."""
    try:
        status = request((target.host, target.port), target.path, timeout_seconds=ANSWER_SECONDS).status
    except ConnectionError:
        return NOT_LISTENING
    except OSError as error:
        return f"no answer: {error or type(error).__name__}"
    return None if status == 200 else f"{target.path} answers {status}"
