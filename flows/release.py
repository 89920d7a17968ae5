"""From raw data to a balanced endpoint: `headrace run NAME`, or the deployment `release` in Prefect's UI."""

from __future__ import annotations

from typing import Any

from prefect import flow

from headrace.project import find_project
from headrace.recipe.recipe import load_recipe
from headrace.release.release import release_lock
from headrace.settings import load_settings
from tasks.data import ingest, validate
from tasks.model import evaluate, export, judge, prepare, register, train
from tasks.serving import close_dead_runs, conclude, end_abandoned, package, promote, roll_out


@flow(name="release", flow_run_name="{recipe_name}")
def release(recipe_name: str, force: bool = False) -> dict[str, Any]:
    """Releases one recipe and returns the facts of what serves now; by `force` also a version that was taken back."""
    project = find_project()
    settings = load_settings(project)
    recipe = load_recipe(recipe_name, project)
    with release_lock(recipe.name, project):
        close_dead_runs(recipe)
        end_abandoned(recipe, project, settings)

        version = ingest(recipe, project)
        validate(recipe, project)
        prepare(recipe, project)
        train(recipe, project)
        export(recipe, project)
        evaluate(recipe, project)

        candidate = judge(recipe, register(recipe, version, project), project, force)

        packaged = package(candidate, project, settings)
        roll_out(recipe, candidate, packaged, project, settings)
        promote(candidate, project)
        return conclude(recipe, candidate, packaged, project, settings)
