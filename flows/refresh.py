"""What a schedule runs: adds the next batch of the source, then releases on all data."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.cancellation import supervised_run
from flows.outcomes import named_outcomes, run_flow
from flows.release import release
from headrace.project import find_project
from headrace.recipe.recipe import load_recipe
from headrace.release.lock import release_lock
from headrace.release.record import current_release
from tasks.data import bring_next_batch


@flow(name="refresh", flow_run_name="refresh-{recipe_name}")
@named_outcomes
def refresh(recipe_name: str, cause: str | None = None) -> dict[str, Any]:
    """Adds the next batch, once it is validated, and releases; the gate decides whether the new model serves. Does nothing
    when the source has no later batch, and returns the facts of what serves."""
    project = find_project()
    recipe = load_recipe(recipe_name, project)
    with supervised_run():
        with release_lock(recipe.name, project):
            batch = bring_next_batch(recipe, project)
        if not batch.added:
            return current_release(recipe.name, project) or {}
        return run_flow(release, recipe_name, cause=cause)
