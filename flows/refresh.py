"""What a schedule runs: the next batch of the source, then a release on the data that is then there."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.release import release
from headrace.project import find_project
from headrace.recipe.recipe import load_recipe
from headrace.release.release import release_lock
from tasks.data import bring_next_batch


@flow(name="refresh", flow_run_name="refresh-{recipe_name}")
def refresh(recipe_name: str) -> dict[str, Any]:
    """Brings the next batch, validated first, and releases; the gate decides whether the new model serves."""
    project = find_project()
    recipe = load_recipe(recipe_name, project)
    with release_lock(recipe.name, project):
        bring_next_batch(recipe, project)
    return release(recipe_name)
