"""From raw data to replicas behind the gateway: `headrace run NAME`, or the deployment `release` in Prefect's UI."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.cancellation import supervised_run
from flows.outcomes import named_outcomes
from headrace.project import find_project
from headrace.recipe.recipe import load_recipe
from headrace.release.lock import release_lock
from tasks.approval import ask
from tasks.data import ingest, validate
from tasks.imported import bring_model, import_model
from tasks.model import evaluate, export, judge, prepare, register, train
from tasks.serving import keep_production_serving, package, promote, record, recover, roll_out, stop


@flow(name="release", flow_run_name="{recipe_name}")
@named_outcomes
def release(recipe_name: str, force: bool = False, cause: str | None = None) -> dict[str, Any]:
    """Releases one recipe and returns the facts of what serves now; with `force` also a version that was rolled back. The alarm
    by which it began is its `cause`."""
    project = find_project()
    recipe = load_recipe(recipe_name, project)
    with supervised_run(), release_lock(recipe.name, project):
        recover(recipe, project)

        if recipe.imported is not None:
            data = bring_model(recipe, project)
            import_model(recipe, project)
        else:
            data = ingest(recipe, project)
            validate(recipe, project)
            prepare(recipe, project)
            train(recipe, project)
            export(recipe, project)
            evaluate(recipe, project)

        candidate = register(recipe, data, project)
        decision = judge(recipe, candidate, project, force, cause)
        if decision.stops:
            keep_production_serving(recipe, project)
            if decision.waits:
                ask(recipe, project)
            stop(recipe, decision, project)

        packaged = package(decision, project)
        roll_out(recipe, decision, packaged, project)
        promote(decision, project)
        return record(recipe, decision, packaged, project)
