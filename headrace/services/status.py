"""What runs: the state of servers and models, and the ends of their logs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headrace.errors import UsageError, near_miss
from headrace.project import Project
from headrace.services import mlflow
from headrace.services.service import Service
from headrace.services.up import NAMES, servers
from headrace.serving.gateway import admin, gateway
from headrace.serving.gateway.model_route import ModelRoute, versions
from headrace.serving.replicas import runners, supervisor
from headrace.serving.replicas.replica import Replica
from headrace.settings import Settings


def status(project: Project) -> dict[str, Any]:
    """Returns `models` and `services` as plain values, quickly, also when nothing runs."""
    return {
        "models": [_model(model, found, project.settings) for model, found in sorted(gateway.read_routes(project).items())],
        "services": [service.to_dict() for service in services(project)],
    }


def services(project: Project) -> list[Service]:
    """The state of every server, in the order of `up.NAMES`."""
    programs, wanted = supervisor.states(project), servers(project)
    with ThreadPoolExecutor(len(wanted)) as pool:
        found = {service.name: service for service in pool.map(lambda server: server.state(programs), wanted)}
    if external := mlflow.external(project.settings):
        found[external.name] = external
    return [found[name] for name in NAMES]


def read_log(name: str, lines: int, project: Project) -> dict[str, str]:
    """The last lines of the log of a service, or of the log of each replica of a model, by service or replica.

    Raises:
        UsageError: no service or model has this name.
    """
    models = gateway.endpoints_by_model(project)
    if name in models:
        runner = runners.runner_for(project, models[name][0].runner)
        return {replica.id: runner.logs(replica, lines) for replica in runner.list(name)}
    if name in NAMES:
        return {name: supervisor.tail(supervisor.log_path(project, name), lines)}
    raise UsageError(f"no service or model {name!r}; {near_miss(name, [*NAMES, *models])}", hint="headrace status")


def _model(model: str, route: ModelRoute, settings: Settings) -> dict[str, Any]:
    replicas = route.pool("main")
    healthy = admin.healthy_endpoints(settings, model, "main")
    return {
        "name": model,
        "version": versions(replicas),
        "alias": None,
        "replicas": len(replicas),
        "ready": sum(replica.address in healthy for replica in replicas),
        "address": gateway.address(settings, model),
        "runner": replicas[0].runner if replicas else None,
        "canary": _trial(route.pool("canary"), route.traffic.canary),
        "shadow": _trial(route.pool("shadow"), route.traffic.shadow),
        "predecessor": versions(route.previous) or None,
    }


def _trial(replicas: list[Replica], percent: float) -> dict[str, Any] | None:
    """A version on trial; None where there is none."""
    if not replicas:
        return None
    return {"version": versions(replicas), "percent": percent, "replicas": len(replicas)}
