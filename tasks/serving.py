"""Serving: package a version, put its replicas behind the balancer, say what serves now."""

from __future__ import annotations

from typing import Any

from prefect import get_client, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Crashed

from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import deploy, recovery, release
from headrace.release.deploy import Package
from headrace.release.release import Candidate
from headrace.services import probes
from headrace.settings import Settings
from tasks.settings import HOUR, PLAIN
from tasks.telling import report, step


@task(name="close dead runs", **PLAIN)
def close_dead_runs(recipe: Recipe) -> int:
    """Marks runs of this recipe that a kill left `Running`; the release lock says that none is alive. Returns how many."""
    alive = flow_run.get_id()
    named = FlowRunFilter(
        name=FlowRunFilterName(any_=[recipe.name]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
    )
    with get_client(sync_client=True) as client:
        dead = [run for run in client.read_flow_runs(flow_run_filter=named) if str(run.id) != str(alive)]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)
    return len(dead)


@task(name="end abandoned", **PLAIN)
def end_abandoned(recipe: Recipe, project: Project, settings: Settings) -> None:
    """What was released last serves again, where a kill left a version that was not."""
    if recipe.name in probes.unfinished(project):
        step("take back", f"what an earlier release of {recipe.name} left")
        recovery.end(recipe.name, project, settings, report, recovery.HOUSEKEEPING_SECONDS)


@task(name="package", timeout_seconds=HOUR, **PLAIN)
def package(candidate: Candidate, project: Project, settings: Settings) -> Package | None:
    """A bento, and an image where replicas are containers or an engine answers."""
    if candidate.chosen is None:
        return None
    step("package", candidate.chosen.name)
    return deploy.package_version(candidate.chosen, project, settings, report)


@task(name="roll out", **PLAIN)  # no time limit: it takes as long as the recipe has it watched, and each wait has its own
def roll_out(recipe: Recipe, candidate: Candidate, packaged: Package | None, project: Project, settings: Settings) -> None:
    """New replicas up and ready, switched in at the balancer as the recipe says, old ones drained and stopped."""
    if candidate.chosen is None or packaged is None:
        return
    step("roll out", deploy.headline(recipe, candidate.chosen, project, settings))
    deploy.roll_out_version(recipe, candidate.chosen, packaged, project, settings, report)


@task(name="promote", **PLAIN)
def promote(candidate: Candidate, project: Project) -> None:
    """The alias `champion`."""
    if candidate.chosen is not None:
        release.promote(candidate.chosen, project)


@task(name="conclude", **PLAIN)
def conclude(
    recipe: Recipe, candidate: Candidate, packaged: Package | None, project: Project, settings: Settings
) -> dict[str, Any]:
    """The journal's line, last of all."""
    return release.conclude(recipe, candidate, deploy.facts_of(recipe, packaged, settings), project, settings)
