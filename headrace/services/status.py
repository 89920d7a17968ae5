"""What runs: the state of servers and models, and the ends of their logs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headrace.errors import HeadraceError, UsageError, near_miss
from headrace.project import Project
from headrace.release import history, journal, reviews
from headrace.release.journal import Entry
from headrace.services import mlflow
from headrace.services.events.overview import overview
from headrace.services.service import Server, Service
from headrace.services.up import NAMES, servers
from headrace.serving.gateway import admin, gateway
from headrace.serving.gateway.model_route import ModelRoute, versions
from headrace.serving.replicas import runners, supervisor
from headrace.serving.replicas.programs import program_path
from headrace.serving.replicas.replica import Replica


def status(project: Project) -> dict[str, Any]:
    """Returns `models`, `candidates`, `services` and `receivers` of events as plain values, quickly, also when nothing runs.

    `candidates` are versions that wait for approval, or have been reviewed and are not released. `models` are those behind the
    gateway, and those that are in production by the journal and do not serve. A model or service has a `problem`, which is None
    when it works, with a `hint`: the command that resolves it.
    """
    models = {model: _model(model, found, project) for model, found in gateway.read_routes(project).items()}
    for model, released in history.production(journal.entries(project)).items():
        if model not in models:
            models[model] = _down(released, project)
        models[model]["alias"] = "champion" if models[model]["version"] == released.version else None
    return {
        "models": [found for _, found in sorted(models.items())],
        "candidates": [one.to_dict() for one in reviews.candidates(project)],
        "services": [service.to_dict() for service in services(project, in_depth=True)],
        "receivers": overview(project),
    }


def failing(found: dict[str, Any]) -> list[str]:
    """Names of what should run, and does not work, in a result of `status`; none after `headrace down`."""
    if all(one["state"] == "stopped" and not one["problem"] for one in found["services"]):
        return []
    services = [one["name"] for one in found["services"] if one["problem"] and one["state"] != "ready"]
    return [*services, *(one["name"] for one in found["models"] if one["problem"])]


def services(project: Project, in_depth: bool = False) -> list[Service]:
    """The state of every server, in the order of `up.NAMES`.

    Args:
        in_depth: whether to look at what each one does as well, rather than whether it answers.
    """
    programs, wanted = supervisor.states(project), servers(project)

    def state(server: Server) -> Service:
        return server.state(programs, program_path(project, server.name).exists(), in_depth)

    with ThreadPoolExecutor(len(wanted)) as pool:
        found = {service.name: service for service in pool.map(state, wanted)}
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


def _model(model: str, route: ModelRoute, project: Project) -> dict[str, Any]:
    replicas = route.pool("main")
    healthy = admin.healthy_endpoints(project, model, "main")
    ready = sum(replica.address in healthy for replica in replicas)
    problem = f"{len(replicas) - ready} of {len(replicas)} replicas do not answer" if ready < len(replicas) else None
    return {
        "name": model,
        "version": versions(replicas),
        "alias": None,
        "replicas": len(replicas),
        "ready": ready,
        "address": gateway.address(project.settings, model),
        "runner": replicas[0].runner if replicas else None,
        "canary": _trial(route.pool("canary"), route.traffic.canary),
        "shadow": _trial(route.pool("shadow"), route.traffic.shadow),
        "predecessor": versions(route.previous) or None,
        "problem": problem,
        "hint": f"headrace logs {model}; headrace up" if problem else None,
    }


def _down(released: Entry, project: Project) -> dict[str, Any]:
    """A model in production that does not serve, with the reason."""
    return {
        "name": released.model,
        "version": released.version,
        "alias": None,
        "replicas": 0,
        "ready": 0,
        "address": gateway.address(project.settings, released.model),
        "runner": released.facts.get("runner"),
        "canary": None,
        "shadow": None,
        "predecessor": None,
        "problem": f"it does not serve: {_why_down(released, project)}",
        "hint": "headrace up",
    }


def _why_down(released: Entry, project: Project) -> str:
    from headrace.release.deploy import is_packaged

    try:
        packaged = is_packaged(released, project)
    except HeadraceError as error:
        return error.message
    if packaged:
        return "it was not started since the services were stopped"
    facts = released.facts
    what = f"image {facts['image']}" if facts["runner"] == "docker" else f"bento {facts['bento']}"
    return f"its {what} is gone from this machine, and headrace up packages it again"


def _trial(replicas: list[Replica], percent: float) -> dict[str, Any] | None:
    """A version on trial; None where there is none."""
    if not replicas:
        return None
    return {"version": versions(replicas), "percent": percent, "replicas": len(replicas)}
