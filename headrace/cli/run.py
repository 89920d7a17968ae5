"""Commands that act: release a model, approve one, start and stop the services."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Any

import click

from headrace.cli.shared import here, json_option, print_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.settings import Settings

NEEDED = frozenset({"prefect-server", "envoy"})
"""What a release waits for; MLflow's UI and the worker come up meanwhile."""


@click.command(short_help="Release a model: data to balanced replicas.")
@click.argument("recipe")
@click.option("--runner", type=click.Choice(["process", "docker"]), help="Where replicas run (setting `runner`).")
@click.option(
    "--force", is_flag=True, help="Take every step, even if nothing seems to have changed; roll out again what was taken back."
)
@json_option
def run(recipe: str, runner: str | None, force: bool, as_json: bool) -> None:
    """Release RECIPE: from its data to replicas behind the balancer.

    Starts the local services if they are not up, and anew those whose code or settings have changed. Steps whose inputs are
    unchanged are skipped; a release that was killed goes on where it was. When nothing changed at all, it says so within a
    second or two.
    """
    if runner:
        os.environ["HEADRACE_RUNNER"] = runner
    project, settings = here()
    loaded = load_recipe(recipe, project)
    if not force and _told_unchanged(loaded, project, settings, as_json):
        return
    if settings.runner == "docker":  # told at once, not after the training
        from headrace.serving.packaging.docker import Docker
        from headrace.serving.replicas.docker_runner import require_quota_store

        require_quota_store(Docker.connect(settings), settings)
    from headrace.serving.gateway.gateway import require_same_access

    require_same_access(project, settings)
    _services_up(project, settings, NEEDED)
    from headrace.services.orchestrate import prefect_environment

    environment = {
        **os.environ,
        **prefect_environment(project, settings),
        "HEADRACE_ROOT": str(project.root),
        # Errors are told once, by Headrace; Prefect's UI keeps the whole traceback.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    from headrace.serving.access import audit

    audit.record(project, "run", {"recipe": recipe, "force": force, "runner": settings.runner})
    os.chdir(project.root)
    # The flow takes this process's place: signals, exit code and memory are its own.
    flow = [sys.executable, "-m", "flows", "release", recipe, *(["--json"] if as_json else []), *(["--force"] if force else [])]
    os.execve(sys.executable, flow, environment)  # noqa: S606 (a list of our own, no shell)


def _told_unchanged(recipe: Recipe, project: Project, settings: Settings, as_json: bool) -> bool:
    """Says so, and True, when nothing changed since the last release and its replicas serve."""
    from headrace.release import record, up_to_date
    from headrace.serving.replicas.replica import ReplicaSpec
    from headrace.serving.rollout.rolling import is_serving

    if not up_to_date.is_unchanged(recipe, project, settings):
        return False
    facts = record.last_final_release(recipe.name, project)
    if facts is None:
        return False
    spec = ReplicaSpec(recipe.name, facts["version"], facts["bento"], facts["image"], facts["threads"])
    if not is_serving(spec, facts["replicas"], project, settings):
        return False
    _show(facts, project, settings, as_json, unchanged=True)
    return True


def _show(facts: dict[str, Any], project: Project, settings: Settings, as_json: bool, unchanged: bool = False) -> None:
    if as_json:
        print_json({**facts, "unchanged": unchanged})
        return
    from headrace.cli.summary import print_summary

    print_summary(facts, project, settings, unchanged)


def _services_up(project: Project, settings: Settings, needed: frozenset[str]) -> None:
    """Starts what is not up, and anew what runs with other code or settings; returns when the `needed` ones answer."""
    from headrace.services.orchestrate import outdated, status

    states = {service["name"]: service["state"] for service in status(project, settings)["services"]}
    are_up = all(states[name] in ("ready", "elsewhere") for name in needed) and "stopped" not in states.values()
    if not are_up or outdated(project, settings):
        _start_services(project, settings, needed)


def _start_services(project: Project, settings: Settings, needed: frozenset[str]) -> None:
    """Those that run already take over settings that were changed."""
    from headrace import console
    from headrace.services.orchestrate import up
    from headrace.services.prefect_deployments import register_in_background

    console.step("up", "Prefect, MLflow, Envoy")
    up(project, settings, console.report, lambda: register_in_background(project, settings), needed)


@click.command(short_help="Start the local services; released models serve again.")
@json_option
def up(as_json: bool) -> None:
    """Start the local services, or reuse those that run: Prefect server and worker, MLflow, Envoy, desk and keeper.

    One that runs with other code, as after an upgrade, or other settings is started anew, and no other. Models that were
    released before serve again.
    """
    project, settings = here()
    from headrace.services.orchestrate import NAMES

    _start_services(project, settings, frozenset(NAMES))
    from headrace import console
    from headrace.cli.inspect import show_status
    from headrace.release.deploy import serve_production
    from headrace.services.prefect_deployments import register_deployments
    from headrace.serving.access import audit

    audit.record(
        project, "up", {"host": settings.host, "access": settings.access, "tls": settings.tls, "runner": settings.runner}
    )
    register_deployments(project, settings)
    serve_production(project, settings, console.report)
    show_status(project, settings, as_json)


@click.command(short_help="Stop everything and free the ports.")
@json_option
def down(as_json: bool) -> None:
    """Stop everything: replicas are drained, servers stopped, ports freed. Data, models and the journal stay."""
    project, settings = here()
    from headrace import console
    from headrace.services.orchestrate import down as stop_all
    from headrace.serving.access import audit

    stop_all(project, settings, console.report)
    audit.record(project, "down", {})
    if as_json:
        print_json({"stopped": True})


@click.command(short_help="Approve a version that waits for a person.")
@click.argument("version")
@click.option(
    "--by", default=getpass.getuser, show_default="your user name", help="Who approves; kept on the version and in the journal."
)
@json_option
def approve(version: str, by: str, as_json: bool) -> None:
    """Approve VERSION (such as digits@4), for recipes with `approval: manual`; then `headrace run` rolls it out.

    The same as setting the tag `approval` to `approved` on the version in the MLflow UI.
    """
    project, _ = here()
    from headrace.release.decision import approve as approve_version

    approved = approve_version(version, project, by)
    if as_json:
        print_json({"model": approved.model, "version": approved.version, "approved_by": by})
    else:
        click.echo(f"{approved.name} is approved by {by}. Roll it out: headrace run {approved.model}")


COMMANDS = [run, up, down, approve]
