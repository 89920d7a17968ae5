"""What the watchdog checks, and how. Imports little, since the watchdog runs for as long as the services do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import DamagedFile
from headrace.project import Project
from headrace.services.authentication import credentials
from headrace.serving.gateway.models_file import read_models
from headrace.serving.local_http import Address, request
from headrace.serving.replicas.programs import program_path
from headrace.serving.replicas.replica import Replica

ANSWER_SECONDS = 1.5
NOT_LISTENING = "not listening"
PROGRAMS = (
    ("mlflow", "HEADRACE_MLFLOW_PORT", "/health", 12.0),
    ("prefect-server", "HEADRACE_PREFECT_PORT", "/api/health", 12.0),
)
"""Programs with a port that are checked like replicas: name, environment variable with it, path of the health check, patience.

MLflow and Prefect do not answer while they do long work, and a restart of Prefect ends the flows that run.
"""
AWAITS = "awaiting-approval"
DECIDING = ("refused", AWAITS, "released", "expired")
"""As in `headrace.release.terms`."""
SECRETS = {"mlflow": "mlflow", "prefect-server": "prefect"}
"""Programs that answer only with their secret, and its name."""


@dataclass(frozen=True)
class Target:
    """A replica, or a program without a model."""

    name: str
    address: Address
    path: str = "/readyz"
    model: str = ""
    pool: str = "main"
    patience: float = 1.0
    """How many times longer than a replica it may fail its checks, and take to start."""
    headers: Mapping[str, str] = field(default_factory=dict)


def programs(project: Project) -> Iterator[Target]:
    """Envoy, and the API server, MLflow and Prefect's server, if they were started and the environment has their ports."""
    for name, address, path in (("envoy", project.gateway_admin, "/ready"), ("api-server", project.api_socket, "/readyz")):
        if program_path(project, name).exists():
            yield Target(name, address, path)
    for name, variable, path, patience in PROGRAMS:
        port = os.environ.get(variable)
        if port and program_path(project, name).exists():
            headers = _authorization(project, SECRETS[name]) if name in SECRETS else {}
            yield Target(name, ("127.0.0.1", int(port)), path, patience=patience, headers=headers)


def _authorization(project: Project, server: str) -> dict[str, str]:
    """Read for each check: the operator may have replaced the secret."""
    with suppress(DamagedFile):  # `headrace up` reports it
        if found := credentials.credential(project, server):
            return {"authorization": credentials.basic(found)}
    return {}


def replicas(project: Project) -> Iterator[Target]:
    """All replicas that should serve. `gateway.read_routes` gives the same, with imports that take ten times the memory."""
    for model, found in read_models(project).items():
        for endpoint in found["endpoints"]:
            replica = Replica.from_dict(endpoint, model)
            yield Target(replica.id, replica.address_in(project), model=model, pool=replica.pool)


def interrupted_models(project: Project) -> list[str]:
    """Models with a version that is on trial, or serves without being recorded: their release is running, or was killed."""
    stored = read_models(project)
    on_trial = {target.model for target in replicas(project) if target.pool != "main"}
    return [model for model, found in stored.items() if model in on_trial or found.get("previous") or found.get("predecessors")]


def waiting_models(project: Project) -> list[str] | None:
    """Models whose newest candidate waits for approval or has been reviewed; None where none ever has. Reads the journal as it
    is, without its checks."""
    newest: dict[str, str] = {}
    text = project.journal.read_bytes() if project.journal.exists() else b""
    if AWAITS.encode() not in text:
        return None
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["event"] in DECIDING:
                newest[entry["model"]] = entry["event"]
    return sorted(model for model, event in newest.items() if event == AWAITS)


def failure(target: Target) -> str | None:
    """Returns why the target is not ready; None when it is."""
    if isinstance(target.address, Path) and not target.address.exists():
        return f"the socket {target.address.name} does not exist"  # a server that was killed has left it
    try:
        status = request(target.address, target.path, headers=target.headers, timeout_seconds=ANSWER_SECONDS).status
    except ConnectionError:
        return NOT_LISTENING
    except OSError as error:
        return f"no answer: {error or type(error).__name__}"
    is_replaced_secret = status == 401 and target.name in SECRETS
    return None if status == 200 or is_replaced_secret else f"{target.path} answers {status}"
