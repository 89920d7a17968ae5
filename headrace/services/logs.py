"""The last lines of a server or of a model's replicas."""

from __future__ import annotations

from headrace.errors import UsageError, near_miss
from headrace.project import Project
from headrace.services.orchestrate import NAMES
from headrace.serving.gateway import gateway
from headrace.serving.replicas import runners, supervisor
from headrace.settings import Settings


def read(name: str, lines: int, project: Project, settings: Settings) -> dict[str, str]:
    """Log lines of the service, or of each replica of the model, that `name` names; by source.

    Raises:
        UsageError: there is no such service or model.
    """
    models = gateway.endpoints_by_model(project)
    if name in models:
        runner = runners.runner_for(project, settings, models[name][0].runner)
        return {replica.id: runner.logs(replica, lines) for replica in runner.list(name)}
    if name in NAMES:
        return {name: supervisor.tail(supervisor.log_path(project, name), lines)}
    raise UsageError(f"no service or model {name!r}; {near_miss(name, [*NAMES, *models])}", hint="headrace status")
