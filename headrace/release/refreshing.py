"""The batch of a refresh: it is released, or decided about, before the next one is fetched, also when something is killed."""

from __future__ import annotations

from pathlib import Path

from headrace.console import Report
from headrace.data import batches
from headrace.data.batches import NextBatch
from headrace.data.tables import batch_files
from headrace.data.versions import data_version
from headrace.files import read_cached_json, write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe

WITHOUT_DATA = "none"


def bring_next_batch(recipe: Recipe, project: Project, report: Report) -> NextBatch:
    """Adds the next batch of the source, as `batches.next_batch`, which has the errors.

    A batch that an earlier refresh has added, and whose release did not end, is returned instead: nothing is fetched.
    """
    path = _path(recipe.name, project)
    begun, now = read_cached_json(path), _data_md5(recipe, project)
    if isinstance(begun, dict) and begun.get("data_before") not in (None, now):
        report("the batch of the last refresh is in the data and was not released yet: it comes first")
        return NextBatch(data_version(project, recipe.name), added=True)
    write_json(path, {"data_before": now})  # before the batch, which may be there after a kill
    found = batches.next_batch(recipe, project, report)
    if not found.added:
        forget(recipe.name, project)
    return found


def forget(model: str, project: Project) -> None:
    """Ends the refresh of a model, if there is one: a release of its data has ended."""
    _path(model, project).unlink(missing_ok=True)


def _data_md5(recipe: Recipe, project: Project) -> str:
    return data_version(project, recipe.name).md5 if batch_files(project, recipe.name) else WITHOUT_DATA


def _path(model: str, project: Project) -> Path:
    return project.state / "incoming" / f"{model}.json"
