"""Commands that release a model, and start and stop the services."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import DamagedFile, HeadraceError
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe


@click.command(short_help="Release a model, from its data to replicas.")
@click.argument("recipe")
@click.option("--runner", type=click.Choice(["process", "docker"]), help="Where replicas run (setting `runner`).")
@click.option(
    "--force", is_flag=True, help="Run all steps even if nothing has changed, and release a version that was rolled back."
)
@json_option
def run(recipe: str, runner: str | None, force: bool, as_json: bool) -> None:
    """Release RECIPE, from its data to replicas behind the gateway.

    Starts the local services, and restarts those whose code or settings have changed. Steps whose inputs are unchanged are
    skipped, and a release that was killed continues where it stopped. If nothing has changed at all, the command only says so,
    within two seconds.
    """
    if runner:
        os.environ["HEADRACE_RUNNER"] = runner
    project = load_project()
    loaded = load_recipe(recipe, project)
    if not force and _is_unchanged(loaded, project, as_json):
        return
    if project.settings.runner == "docker":  # reported now rather than after training
        from headrace.serving.packaging.docker import Docker
        from headrace.serving.replicas.docker_runner import require_quota_store

        require_quota_store(Docker.connect(project.settings), project.settings)
    from headrace.serving.gateway.gateway import require_same_access

    require_same_access(project)
    _report_outdated(project)
    project = _start_needed_services(project)
    from headrace.services.prefect import process_environment

    environment = {
        **process_environment(project),
        "HEADRACE_ROOT": str(project.root),
        # Headrace prints errors; the traceback is in Prefect's UI.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    from headrace.serving.access import audit

    audit.record(project, "run", {"recipe": recipe, "force": force, "runner": project.settings.runner})
    os.chdir(project.root)
    # The flow replaces this process, so that signals and the exit code are the flow's.
    flow = [sys.executable, "-m", "flows", "release", recipe, *(["--json"] if as_json else []), *(["--force"] if force else [])]
    os.execve(sys.executable, flow, environment)  # noqa: S606 (an argument list without a shell)


def _is_unchanged(recipe: Recipe, project: Project, as_json: bool) -> bool:
    """Whether nothing has changed since the last release, its replicas serve and have MLflow's alias; if so, prints it."""
    from headrace.cli.inspect import misplaced_champions
    from headrace.release import record, up_to_date
    from headrace.serving.replicas.replica import ReplicaSpec
    from headrace.serving.rollout.rolling import is_serving

    if not up_to_date.is_unchanged(recipe, project):
        return False
    facts = record.current_release(recipe.name, project)
    if facts is not None:  # in production, also when a later candidate was refused: it has to serve
        spec = ReplicaSpec(recipe.name, facts["version"], facts["bento"], facts["image"], facts["threads"])
        if not is_serving(spec, facts["replicas"], project) or recipe.name in misplaced_champions(project):
            return False
    facts = record.last_final_release(recipe.name, project)
    if facts is None:
        return False
    _show(facts, project, as_json, unchanged=True)
    return True


def _report_outdated(project: Project) -> None:
    """Says so when another Headrace than the installed one wrote the project's files."""
    from headrace import console
    from headrace.project_template.record import outdated_note

    if note := outdated_note(project.root):
        console.report(note)


def _show(facts: dict[str, Any], project: Project, as_json: bool, unchanged: bool = False) -> None:
    if as_json:
        print_json({**facts, "unchanged": unchanged})
        return
    from headrace.cli.summary import print_summary

    print_summary(facts, project, unchanged)


def _start_needed_services(project: Project) -> Project:
    """Starts stopped services and restarts outdated ones; returns once the gateway responds, while the others still start.

    Returns:
        The project, with the ports that the services have.
    """
    from headrace import console
    from headrace.services.automatic_ports import choose_ports
    from headrace.services.status import services
    from headrace.services.up import outdated, start_for_release, stop_if_moved

    states = {service.name: service.state for service in services(project)}
    if states["envoy"] != "ready" or not {"stopped", "failed"}.isdisjoint(states.values()) or outdated(project):
        console.step("up", "Prefect, MLflow, Envoy")
        stop_if_moved(project, console.report)
        project = choose_ports(project, console.report)
        start_for_release(project, console.report)
    return project


@click.command(short_help="Start the services and the released models.")
@json_option
def up(as_json: bool) -> None:
    """Start the local services, or reuse those that run: Prefect server and worker, MLflow, Envoy, API server and watchdog.

    A service whose code or settings have changed, for example after an upgrade, is restarted. Released models are started too.
    """
    project = load_project()
    from headrace import console
    from headrace.cli.inspect import show_status
    from headrace.release.deploy import serve_production
    from headrace.services.automatic_ports import choose_ports
    from headrace.services.prefect_deployments import register_deployments
    from headrace.services.up import stop_if_moved
    from headrace.services.up import up as start_all
    from headrace.serving.access import audit

    console.step("up", "Prefect, MLflow, Envoy")
    _report_outdated(project)
    stop_if_moved(project, console.report)
    project = choose_ports(project, console.report)
    start_all(project, console.report, lambda: register_deployments(project, console.report))
    audit.record(
        project,
        "up",
        {
            "host": project.settings.host,
            "access": project.settings.access,
            "tls": project.settings.tls,
            "runner": project.settings.runner,
        },
    )
    try:
        serve_production(project, console.report)
    except HeadraceError:
        if not as_json:
            show_status(project, as_json)
        raise
    show_status(project, as_json)


@click.command(short_help="Stop all services and models.")
@json_option
def down(as_json: bool) -> None:
    """Stop all services and models: replicas finish their requests, ports are freed. Data, models and the journal are kept."""
    project = load_project()
    from headrace import console
    from headrace.services.up import down as stop_all
    from headrace.serving.access import audit

    try:
        stop_all(project, console.report)
    except DamagedFile:  # nothing was stopped
        raise
    except HeadraceError:
        with contextlib.suppress(OSError, HeadraceError):  # the same disk
            audit.record(project, "down", {})
        raise
    audit.record(project, "down", {})
    if as_json:
        print_json({"stopped": True})
