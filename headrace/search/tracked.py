"""A search from its prepared rows to its result, written to MLflow as it goes: what the command and the flow run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from headrace.console import Report
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.search.place import forget_rows
from headrace.search.plots import draw
from headrace.search.result import result_of
from headrace.search.run import Runner, RunTrial, Search
from headrace.search.study import Finished
from headrace.tracking.searches import SearchRun, TrialFacts, open_search_run


def run_trials(
    search: Search,
    project: Project,
    report: Report,
    run_trial: RunTrial = lambda number, run: run(),
    *,
    restart: bool = False,
) -> dict[str, Any]:
    """Runs the trials that are left, and returns the result (`headrace.search.result`), with the id of its run in MLflow.

    Args:
        run_trial: runs one trial; a flow runs it as a task.
        restart: whether the search began again, and gets a new run in MLflow.

    Raises:
        TrainingError: all of the first trials failed.
        RegistryError: MLflow's database cannot be written.
    """
    run = _open_run(search, project, restart)
    run.log_missing(map(_facts, search.study.finished()))

    def finished(trial: Finished) -> None:
        report(describe(trial, search))
        run.log_missing([_facts(trial)])

    try:
        Runner(search, project, finished, run_trial).run()
        result = result_of(search)
        _finish(run, search, result)
        forget_rows(search.place)
    except BaseException:
        with suppress(HeadraceError):
            run.interrupt()
        raise
    return {**result, "run_id": run.id}


def describe(trial: Finished, search: Search) -> str:
    """Returns a line about a trial that is over."""
    best, metric = search.study.best(), search.objective[0]
    shown = [f"trial {trial.number:>3}", f"{trial.state:<8}"]
    if trial.is_complete:
        shown.append(f"{metric} {trial.value:.5g}")
    elif trial.state == "pruned":
        shown.append(f"after epoch {trial.epochs}")
    if best:
        shown.append("the best so far" if best[0].number == trial.number else f"best {best[0].value:.5g} ({best[0].number})")
    if trial.reason:
        shown.append(trial.reason)
    values = ", ".join(f"{name.split('.', 1)[1]} {_short(value)}" for name, value in trial.values.items())
    return "  ".join([*shown, f"{trial.seconds:.1f} s", values])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _open_run(search: Search, project: Project, restart: bool) -> SearchRun:
    metric, better = search.objective
    parameters = {"metric": metric, "better": better} | {f"space.{name}": str(entry) for name, entry in search.space.items()}
    return open_search_run(search.recipe.name, search.place.root.name, metric, parameters, project, restart=restart)


def _facts(trial: Finished) -> TrialFacts:
    return TrialFacts(
        trial.number,
        trial.state,
        {name: str(value) for name, value in trial.values.items()},
        trial.history,
        trial.value if trial.is_complete else None,
        trial.seconds,
        trial.reason,
    )


def _finish(run: SearchRun, search: Search, result: dict[str, Any]) -> None:
    winner, expected = result["winner"], result["expected"]
    values = {} if winner is None else {f"val_{run.metric}": winner["value"]}
    if expected is not None:
        values |= {f"expected_{run.metric}": expected["value"], "optimism": expected["optimism"]}
    values |= {f"importance_{name}": value for name, value in result["importances"].items()}
    tags = {f"trials.{state}": str(count) for state, count in result["counts"].items()}
    if winner is not None:
        tags |= {"winner": str(winner["number"])} | {f"winner.{name}": str(value) for name, value in winner["values"].items()}
    run.finish(values, tags, draw(search))
