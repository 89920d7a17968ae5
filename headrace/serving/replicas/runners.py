"""Chooses the runner of replicas: local processes or Docker containers."""

from __future__ import annotations

from typing import cast

from headrace.project import Project
from headrace.serving.replicas.replica import Runner


def runner_for(project: Project, name: str | None = None) -> Runner:
    """Returns the runner of this name, by default the one that the setting `runner` names."""
    if (name or project.settings.runner) == "docker":
        from headrace.serving.replicas.docker_runner import DockerRunner

        return cast(Runner, DockerRunner(project))
    from headrace.serving.replicas.process_runner import ProcessRunner

    return ProcessRunner(project)
