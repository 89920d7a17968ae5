"""Serving: packages a version, puts its replicas behind the gateway, and records the release."""

from __future__ import annotations

from typing import Any, NoReturn

from prefect import get_client, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed

from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import deploy, recovery
from headrace.release import record as recording
from headrace.release.decision import Decision
from headrace.release.deploy import PackagedVersion
from tasks.reporting import report, step
from tasks.settings import HOUR, PLAIN


@task(name="recover", **PLAIN)
def recover(recipe: Recipe, project: Project) -> None:
    """Cleans up after a release of the recipe that was killed: its run in Prefect, its files, and its roll-out."""
    _close_dead_runs(recipe)
    project.remove_partial_files()
    if recovery.is_interrupted(recipe.name, project):
        step("recover", f"an earlier release of {recipe.name} was interrupted")
        recovery.roll_back_interrupted_release(recipe.name, project, report, recovery.REPAIR_SECONDS)


def _close_dead_runs(recipe: Recipe) -> None:
    """Closes runs that a kill left `Running` or `Cancelling`; the release lock says that none of them is alive."""
    alive = flow_run.get_id()
    open_states = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
    named = FlowRunFilter(name=FlowRunFilterName(any_=[recipe.name]), state=FlowRunFilterState(type=open_states))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=named):
            if str(run.id) != str(alive):
                ended = Cancelled if run.state_type == StateType.CANCELLING else Crashed
                client.set_flow_run_state(run.id, ended(message="its process was killed"), force=True)


@task(name="keep production serving", **PLAIN)
def keep_production_serving(recipe: Recipe, project: Project) -> None:
    """Starts the version in production if it does not serve, where the release stops before its roll-out."""
    deploy.keep_production_serving(recipe.name, project, report)


def stop(recipe: Recipe, decision: Decision, project: Project) -> NoReturn:
    """Ends the release with the error that says why the candidate does not go into production: no step, and no failed one."""
    recording.stop_release(recipe, decision, project)


@task(name="package", timeout_seconds=HOUR, **PLAIN)
def package(decision: Decision, project: Project) -> PackagedVersion:
    """Builds a bento, and an image where replicas are containers."""
    step("package", decision.chosen.name)
    # A champion that is kept has the candidate's bytes.
    return deploy.package_version(decision.chosen, project, report, decision.candidate.identity["content_sha256"])


@task(name="roll out", **PLAIN)  # without a time limit: a trial takes as long as the recipe says, and each wait has its own
def roll_out(recipe: Recipe, decision: Decision, packaged: PackagedVersion, project: Project) -> None:
    """Starts new replicas, sends requests to them as the recipe says, then drains and stops the old ones."""
    step("roll out", deploy.headline(recipe, decision.chosen, project))
    deploy.roll_out_version(recipe, decision.chosen, packaged, project, report, decision.verdict.comparison)


@task(name="promote", **PLAIN)
def promote(decision: Decision, project: Project) -> None:
    """Moves the alias `champion` in MLflow."""
    recording.promote(decision.chosen, project)


@task(name="record", **PLAIN)
def record(recipe: Recipe, decision: Decision, packaged: PackagedVersion, project: Project) -> dict[str, Any]:
    """Writes the journal's entry, last of all."""
    serving = deploy.serving_facts(recipe, packaged, project.settings)
    return recording.record_release(recipe, decision, serving, project)
