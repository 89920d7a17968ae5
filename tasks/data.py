"""Data: ingests it and validates it with its suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State, TaskRun

from headrace.data import ingest as ingestion
from headrace.data.batches import NextBatch
from headrace.data.sources.addresses import redacted
from headrace.data.versions import DataVersion
from headrace.errors import DataRejected, SourceUnreachable
from headrace.files import read_cached_json
from headrace.importing.base import bring_base
from headrace.pipeline.dvc import StageResult, reproduce
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import refreshing
from tasks.reporting import report, report_result, step
from tasks.settings import HOUR, PLAIN


def is_out_of_reach(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Only a source that did not answer is tried again: a wrong sha256 stays wrong."""
    return isinstance(state.result(raise_on_failure=False), SourceUnreachable)


@task(name="ingest", retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=is_out_of_reach, timeout_seconds=HOUR, **PLAIN)
def ingest(recipe: Recipe, project: Project) -> DataVersion:
    """Brings the source into `data/`, unless it is there already."""
    step("ingest")
    bring_base(recipe, project, report)
    with _failures_shown(recipe, project):
        return ingestion.ingest(recipe, project, report)


@task(name="next batch", timeout_seconds=HOUR, **PLAIN)
def bring_next_batch(recipe: Recipe, project: Project) -> NextBatch:
    """Adds the next batch of the source, or returns that of a refresh that was interrupted; without either the data stays."""
    step("next batch", redacted(recipe.data.origin))
    with _failures_shown(recipe, project):
        return refreshing.bring_next_batch(recipe, project, report)


@task(name="validate", timeout_seconds=HOUR, **PLAIN)
def validate(recipe: Recipe, project: Project) -> StageResult | State[StageResult]:
    """Validates all batches with the expectations of the recipe."""
    step("validate", "the expectations of the recipe, on all batches")
    with _failures_shown(recipe, project):
        result = report_result(reproduce("validate", recipe, project))
    _show(recipe, project)
    return result


@contextmanager
def _failures_shown(recipe: Recipe, project: Project) -> Iterator[None]:
    """Shows failed expectations in Prefect too, as a table."""
    try:
        yield
    except DataRejected:
        _show(recipe, project)
        raise


def _show(recipe: Recipe, project: Project) -> None:
    found = read_cached_json(project.validation_report(recipe.name))
    if not found:
        return
    columns = ("type", "column", "unexpected", "percent", "samples")
    failures = [{name: str(failure[name]) for name in columns} for failure in found["failures"]]
    verdict = f"{found['passed']} of {found['total']} expectations passed on {found['rows']:,} rows"
    report(verdict)
    create_table_artifact(
        key=f"validation-{recipe.name}",
        table=failures or [{"passed": found["passed"], "of": found["total"], "rows": found["rows"]}],
        description=f"{recipe.name}: {verdict}; {found['docs']}",
    )
