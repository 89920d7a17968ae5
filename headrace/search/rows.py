"""The rows of a search: ingested, validated and split once, as for a release, by the same stages."""

from __future__ import annotations

from headrace.console import Report
from headrace.data import ingest as ingestion
from headrace.pipeline.dvc import reproduce
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release.lock import release_lock


def prepare_rows(recipe: Recipe, project: Project, report: Report) -> None:
    """Brings the data, validates it and splits it; what is unchanged is skipped.

    Raises:
        DataError: the source cannot be read, or its rows were refused.
        Busy: the recipe is being released.
    """
    with release_lock(recipe.name, project):
        ingestion.ingest(recipe, project, report)
        for stage in ("validate", "prepare"):
            result = reproduce(stage, recipe, project)
            report(f"{stage}: {f'done in {result.seconds:.1f} s' if result.ran else 'unchanged'}")
