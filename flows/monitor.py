"""What a schedule runs to watch a model: looks at it, tells people, and trains again where the recipe says so."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.cancellation import RunEnded, supervised_run
from flows.outcomes import named_outcomes, run_flow
from flows.refresh import refresh
from flows.release import release
from headrace.project import find_project
from headrace.recipe.recipe import load_recipe
from headrace.services.monitoring import retraining
from tasks.monitoring import announce, decide_retraining, look


@flow(name="monitor", flow_run_name="monitor-{recipe_name}")
@named_outcomes
def monitor(recipe_name: str) -> dict[str, Any]:
    """Compares what the version in production is asked with its training rows, and its answers with the true ones. An alarm
    becomes an event in Prefect and a notification, and trains again within the limits of `monitor.retrain`; the gate decides
    about the new model, as always."""
    project = find_project()
    recipe = load_recipe(recipe_name, project)
    with supervised_run():
        found = look(recipe, project)
        announce(recipe, found, project)
        if decide_retraining(recipe, found, project):
            with retraining.attempt(recipe_name, project, RunEnded):
                run_flow(refresh if recipe.data.incremental else release, recipe_name, cause="; ".join(found.reasons))
        return found.model_dump(mode="json", include={"model", "version", "at", "rows", "new_hours", "alarm", "quality"})
