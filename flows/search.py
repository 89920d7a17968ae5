"""Searches for better hyperparameters: the deployment `search` in Prefect's UI. `headrace search` does it without Prefect."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.cancellation import supervised_run
from headrace.project import find_project
from headrace.recipe.search import SamplerName
from headrace.release.lock import release_lock
from headrace.search.place import search_lock
from headrace.search.run import Request, read_request
from tasks.data import ingest, validate
from tasks.model import prepare
from tasks.search import search_trials, write_winner


@flow(name="search", flow_run_name="search-{recipe_name}")
def search(
    recipe_name: str,
    trials: int | None = None,
    workers: int | None = None,
    timeout: str | None = None,
    sampler: SamplerName | None = None,
    apply: bool = False,
) -> dict[str, Any]:
    """Runs the search that the recipe describes, each trial as a task, and returns its result; with `apply` the best values are
    written into the recipe. A run of the same recipe and data continues one that was killed or cancelled."""
    project = find_project()
    request = Request(recipe_name, trials, workers, timeout or None, sampler)
    recipe, _, _ = read_request(request, project)
    with supervised_run(), search_lock(recipe.name, project):
        with release_lock(recipe.name, project):
            ingest(recipe, project)
            validate(recipe, project)
            prepare(recipe, project)
        result = search_trials(request, project)
        if apply:
            write_winner(recipe, result, project)
        return result
