"""Searches: runs one trial as a task, and all of those that are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.search.apply import apply_values
from headrace.search.run import Request, open_search
from headrace.search.study import Finished
from headrace.search.tracked import run_trials
from tasks.reporting import report, step
from tasks.settings import PLAIN


def search_trials(request: Request, project: Project) -> dict[str, Any]:
    """Runs the trials that are left, each as a task, and returns the result of the search."""
    step("search", request.recipe)
    search = open_search(request, project, report)
    return run_trials(search, project, report, _as_task, restart=request.restart)


def _as_task(number: int, run: Callable[[], Finished]) -> Finished:
    found: list[Finished] = []
    trial(number, lambda: found.append(run()) or found[0])  # type: ignore[func-returns-value]
    return found[0]


@task(name="trial", task_run_name="trial-{number}", **PLAIN)  # without a time limit: it takes as long as a training
def trial(number: int, run: Callable[[], Finished]) -> State[Finished] | None:
    """Trains with the values of one trial; in Prefect, it is `Pruned` or `Failed trial` if it ended so."""
    found = run()
    if found.is_complete:
        return None
    name = "Pruned" if found.state == "pruned" else "Failed trial"
    return Completed(name=name, message=found.reason or f"after epoch {found.epochs}", data=found)


@task(name="write winner", **PLAIN)
def write_winner(recipe: Recipe, result: dict[str, Any], project: Project) -> str | None:
    """Writes the best values into the recipe; returns the name of its file."""
    if result["winner"] is None:
        return None
    path = apply_values(recipe.name, result["winner"]["values"], project)
    report(f"the values of trial {result['winner']['number']} are in {path.relative_to(project.root)}")
    return str(path.relative_to(project.root))
