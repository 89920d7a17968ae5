"""Runs a search: prepares the rows once, then trains trials in worker processes until their number or the time is reached."""

from __future__ import annotations

import contextvars
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headrace.console import Report
from headrace.errors import RecipeError, TrainingError
from headrace.project import Project
from headrace.recipe.duration import duration_seconds
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.recipe.search import (
    PrunerName,
    SamplerName,
    SearchConfig,
    Space,
    draw,
    objective_of,
    problem_of,
    space_of,
    with_values,
)
from headrace.recipe.task_types import Better
from headrace.search.default_space import default_space
from headrace.search.place import Place, most_epochs, open_place
from headrace.search.process import Ended, TrialProcess
from headrace.search.study import EPOCHS, LIKE, REASON, SECONDS, Finished, Study

if TYPE_CHECKING:
    import optuna

FAILURES_AT_THE_START = 5
"""A search all of whose first trials fail has a cause that no further trial removes."""
COMBINATIONS = 200
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Request:
    """What is asked for: the recipe's section `search`, and what replaces its fields."""

    recipe: str
    trials: int | None = None
    workers: int | None = None
    timeout: str | None = None
    sampler: SamplerName | None = None
    pruner: PrunerName | None = None
    restart: bool = False


@dataclass(frozen=True)
class Search:
    """A search that is ready to run, or to continue."""

    recipe: Recipe
    config: SearchConfig
    space: Space
    place: Place
    is_default_space: bool

    @cached_property
    def objective(self) -> tuple[str, Better]:
        return objective_of(self.recipe)

    @cached_property
    def study(self) -> Study:
        config = self.config
        return Study(self.place, self.space, self.objective[1], config.sampler, config.pruner, config.seed, _most_epochs(self))


def read_request(request: Request, project: Project) -> tuple[Recipe, SearchConfig, Space]:
    """Returns the recipe, the settings of the search, and its space.

    Raises:
        RecipeError: the recipe breaks a rule.
    """
    recipe = load_recipe(request.recipe, project)
    if recipe.model.name == "imported":
        where, hint = f"recipes/{recipe.name}.yaml", "search for a recipe with another model"
        raise RecipeError("an imported model is not trained, so there is nothing to search for", where=where, hint=hint)
    names = ("trials", "workers", "timeout", "sampler", "pruner")
    changed = {name: value for name in names if (value := getattr(request, name)) is not None}
    config = SearchConfig.model_validate({**(recipe.search or SearchConfig()).model_dump(), **changed})
    if not config.space:
        config = config.model_copy(update={"space": default_space(recipe)})
    return recipe, config, space_of(config, recipe)


def open_search(request: Request, project: Project, report: Report) -> Search:
    """Opens the search for the prepared rows of the recipe: the one that these began, or a new one.

    Raises:
        RecipeError: the recipe breaks a rule.
        DamagedFile: earlier trials cannot be read.
    """
    recipe, config, space = read_request(request, project)
    is_default = recipe.search is None or not recipe.search.space
    place = open_place(recipe, space, project, report, restart=request.restart)
    search = Search(recipe, config, space, place, is_default)
    metric, better = search.objective
    report(f"{metric} on the validation rows, {better} is better; {config.sampler}, pruner {config.pruner}")
    for name, entry in space.items():
        report(f"{name}: {entry}")
    if is_default:
        report("a default space; a section `search` in the recipe replaces it (docs/search.md)")
    _report_misfits(search, report)
    _begin(search, report)
    return search


def _begin(search: Search, report: Report) -> None:
    outside = search.study.begin_with(search.recipe)
    finished, interrupted = search.study.finished(), search.study.interrupted()
    if finished or interrupted:
        rest = f", {len(interrupted)} interrupted" if interrupted else ""
        report(f"continues: {len(finished)} of {search.config.trials} trials are done{rest}")
    elif outside:
        report(f"the recipe as it is will be no trial: the space does not have its {', '.join(outside)}")


def _report_misfits(search: Search, report: Report) -> None:
    rng = random.Random(search.config.seed)
    problems = [problem_of(search.recipe, draw(search.space, rng)) for _ in range(COMBINATIONS)]
    found = [one for one in problems if one is not None]
    if found:
        share = len(found) / COMBINATIONS
        report(f"{share:.0%} of the combinations do not fit together, and such trials fail: {found[0]}")


def _most_epochs(search: Search) -> int:
    """The largest number of epochs, or of rounds, of all trials."""
    of_space = [entry for name, entry in search.space.items() if name in ("train.epochs", "model.rounds")]
    edges = [int(edge) for entry in of_space for edge in entry.edges]
    return max(edges, default=most_epochs(search.recipe))


RunTrial = Callable[[int, Callable[[], Finished]], Finished]
"""Runs a trial, given its number; a flow runs it as a task."""


class Runner:
    """Runs the trials of a search that are left, several at a time."""

    def __init__(
        self,
        search: Search,
        project: Project,
        on_finished: Callable[[Finished], None],
        run_trial: RunTrial = lambda number, run: run(),
    ) -> None:
        """
        Args:
            on_finished: is called with each trial that is over, by one thread at a time.
        """
        self._search, self._project, self._on_finished, self._run_trial = search, project, on_finished, run_trial
        self._study, self._lock = search.study, threading.RLock()
        self._interrupted = self._study.interrupted()
        self._begun = len(self._study.finished()) + len(self._interrupted)
        timeout = search.config.timeout
        self._deadline = time.monotonic() + duration_seconds(timeout) if timeout else None
        self._is_stopped = threading.Event()
        self._processes: list[TrialProcess] = []

    def run(self) -> None:
        """Returns once all trials are over, or the time is.

        Raises:
            TrainingError: all of the first trials failed.
            HeadraceError: the rows cannot be loaded, or the disk is full.
        """
        left = len(self._interrupted) + max(0, self._search.config.trials - self._begun)
        count = min(self._search.config.workers, left)
        if count == 0:
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // count)
        self._processes = [self.make_process(i, threads) for i in range(count)]
        try:
            with ThreadPoolExecutor(count, thread_name_prefix="trials") as pool:
                self._wait({pool.submit(contextvars.copy_context().run, self._work, one) for one in self._processes})
        finally:
            for process in self._processes:
                process.close()

    def make_process(self, number: int, threads: int) -> TrialProcess:
        """Returns a process that trains trials one after another, with this many threads."""
        return TrialProcess(self._search.place, number, threads, self._project)

    def _wait(self, running: set[Future[None]]) -> None:
        """Waits for the threads; ends the processes with the first error, and with a signal."""
        try:
            while running:  # in steps, so that a signal reaches this thread
                done, running = wait(running, POLL_SECONDS, FIRST_EXCEPTION)
                for one in done:
                    one.result()
        finally:
            self._is_stopped.set()
            for process in self._processes:
                process.kill()

    def _work(self, process: TrialProcess) -> None:
        while (trial := self._next()) is not None:

            def run(trial: optuna.Trial = trial) -> Finished:
                return self._trial(trial, process)

            finished = self._run_trial(trial.number, run)
            with self._lock:
                self._on_finished(finished)
                self._require_a_success()

    def _next(self) -> optuna.Trial | None:
        with self._lock:
            if self._is_stopped.is_set() or (self._deadline is not None and time.monotonic() >= self._deadline):
                return None
            if self._interrupted:
                return self._interrupted.pop(0)
            if self._begun >= self._search.config.trials:
                return None
            self._begun += 1
            return self._study.ask()

    def _trial(self, trial: optuna.Trial, process: TrialProcess) -> Finished:
        began = time.monotonic()
        with self._lock:
            values = self._study.values(trial)
            if (same := self._same(values)) is not None:
                return self._repeated(trial, same)
        if (problem := problem_of(self._search.recipe, values)) is not None:
            return self._tell(trial, "failed", None, reason=problem)
        try:
            reply = process.train({"number": trial.number, "values": values}, self._judge_epochs(trial, values))
        except Ended as ended:
            if self._is_stopped.is_set():
                raise
            reply = {"failed": str(ended)}
        seconds = round(time.monotonic() - began, 3)
        if "failed" in reply:
            return self._tell(trial, "failed", None, reason=reply["failed"], seconds=seconds)
        if "pruned" in reply:
            return self._tell(trial, "pruned", None, seconds=seconds)
        return self._tell(trial, "complete", reply["complete"], epochs=reply["epochs"], seconds=seconds)

    def _judge_epochs(self, trial: optuna.Trial, values: dict[str, Any]) -> Callable[[int, float], bool]:
        last = most_epochs(with_values(self._search.recipe, values))

        def on_epoch(epoch: int, value: float) -> bool:
            with self._lock:
                return not self._study.report(trial, epoch, value, is_last=epoch >= last)

        return on_epoch

    def _same(self, values: dict[str, Any]) -> Finished | None:
        return next((one for one in self._study.finished() if one.values == values and one.state != "failed"), None)

    def _repeated(self, trial: optuna.Trial, same: Finished) -> Finished:
        """A trial with the values of an earlier one, whose result it would repeat."""
        for epoch, value in same.history.items():
            self._study.report(trial, epoch, value, is_last=True)
        reason = f"the values of trial {same.number}"
        attributes: dict[str, Any] = {REASON: reason, LIKE: same.number, EPOCHS: same.epochs, SECONDS: 0.0}
        return self._study.tell(trial, same.state, same.value, **attributes)

    def _tell(self, trial: optuna.Trial, state: str, value: float | None, **attributes: Any) -> Finished:
        with self._lock:
            finished = self._study.tell(trial, state, value, **attributes)
        self._search.place.checkpoint(trial.number).unlink(missing_ok=True)
        return finished

    def _require_a_success(self) -> None:
        """
        Raises:
            TrainingError: the first trials all failed.
        """
        finished = self._study.finished()
        if len(finished) >= FAILURES_AT_THE_START and all(one.state == "failed" for one in finished):
            raise TrainingError(
                f"the first {len(finished)} trials all failed; the last one: {finished[-1].reason}",
                where=f"recipes/{self._search.recipe.name}.yaml",
                hint="narrow search.space, or correct the recipe; then run the same command with --restart",
            )
