"""Models that others trained: fetched into `data/`, then checked and converted to the served graph."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.client.schemas.objects import State

from headrace.data.versions import DataVersion
from headrace.files import read_cached_json
from headrace.importing import store
from headrace.importing.build import facts_shown
from headrace.pipeline.dvc import StageResult, reproduce
from headrace.pipeline.stages import IMPORT
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.tracking.artifact import IMPORT_FACTS
from tasks.data import is_out_of_reach
from tasks.reporting import report, report_result, step
from tasks.settings import HOUR, PLAIN

RETRIED: dict[str, Any] = {"retries": 2, "retry_delay_seconds": [2, 10], "retry_condition_fn": is_out_of_reach}


@task(name="bring model", timeout_seconds=HOUR, **RETRIED, **PLAIN)
def bring_model(recipe: Recipe, project: Project) -> DataVersion:
    """Brings the model into `data/`, unless it is there already."""
    step("bring model")
    assert recipe.imported is not None
    return store.bring_model(recipe.name, recipe.imported, project, report)


@task(name="import model", timeout_seconds=HOUR, **PLAIN)
def import_model(recipe: Recipe, project: Project) -> StageResult | State[StageResult]:
    """Converts the model to the served graph, and checks it."""
    step("import model", "to ONNX, checked")
    result = report_result(reproduce(IMPORT, recipe, project))
    for line in facts_shown(read_cached_json(project.artifacts(recipe.name) / "export" / IMPORT_FACTS) or {}):
        report(line)
    return result
