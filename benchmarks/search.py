"""Measures hyperparameter searches: TPE with pruning beside random search, with the same number of trials and in the same time.

`python -m benchmarks.search --out docs/benchmarks/search.md` takes about ten minutes on two cores; `--minutes 1` is a check.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.progress import exit_code_of, report
from benchmarks.report import hardware, markdown, wrap
from headrace.data.ingest import ingest
from headrace.errors import ExportError, TrainingError
from headrace.pipeline.stages import STAGES
from headrace.project import Project, find_project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.recipe.search import SearchConfig, space_of, with_values
from headrace.search.default_space import default_space
from headrace.search.place import open_place
from headrace.search.process import TrialProcess
from headrace.search.result import expected_of
from headrace.search.run import Runner, Search
from headrace.search.study import Finished
from headrace.search.trainer import Pruned, Trainer

TRIALS = 12
ROWS = {"digits": (500, 200, 900), "employment": (3_000, 400, 10_000), "flights": (3_000, 400, 10_000)}
"""Training, validation and test rows: a part of each, so that a trial takes about a second."""
KINDS: dict[str, dict[str, Any]] = {
    "TPE, median pruner": {"sampler": "tpe", "pruner": "median"},
    "random": {"sampler": "random", "pruner": "none"},
}


@dataclass(frozen=True)
class Measured:
    """One search."""

    recipe: str
    kind: str
    better: str
    best: float
    """The best value on the validation rows."""
    cpu_seconds: float
    pruned: int
    course: list[tuple[float, float]]
    """Processor seconds at the end of each complete trial, and its value."""
    expected: float
    optimism: float
    test: float
    """The winner's value on the test rows, which no search has read."""

    def best_until(self, cpu_seconds: float) -> float | None:
        """The best value of the trials that were over by then."""
        values = [value for at, value in self.course if at <= cpu_seconds]
        return (max if self.better == "higher" else min)(values) if values else None


class InThisProcess(TrialProcess):
    """Trains trials in this process, so that they all have warm imports and loaded rows."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def train(self, trial: dict[str, Any], on_epoch: Callable[[int, float], bool]) -> dict[str, Any]:
        try:
            found = self._trainer.train(trial["number"], with_values(self._trainer.recipe, trial["values"]), on_epoch)
            return {"complete": found.value, "epochs": found.epochs}
        except Pruned:
            return {"pruned": True}
        except (TrainingError, ExportError) as error:
            return {"failed": error.message}

    def kill(self) -> None: ...

    def close(self) -> None: ...


class WarmRunner(Runner):
    trainer: Trainer

    def make_process(self, number: int, threads: int) -> TrialProcess:
        return InThisProcess(self.trainer)


def prepared(name: str, root: Path) -> tuple[Recipe, Project]:
    """A project with a part of the rows of a recipe."""
    source = find_project()
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").touch()
    shutil.copy(source.recipes / f"{name}.yaml", root / "recipes")
    if (fetched := source.state / "cache" / "sources").is_dir():
        shutil.copytree(fetched, root / ".headrace" / "cache" / "sources")
    for copied in (".dvc/config", "data.dvc"):
        if (source.root / copied).exists():
            (root / copied).parent.mkdir(exist_ok=True)
            shutil.copy(source.root / copied, root / copied)
    project = Project(root)
    recipe = load_recipe(name, project)
    ingest(recipe, project, report)
    STAGES["prepare"](recipe, project)
    for part, rows in zip(("train", "validation", "test"), ROWS[name], strict=True):
        path = project.artifacts(name) / "prepared" / f"{part}.parquet"
        frame = pd.read_parquet(path)
        frame.sample(min(rows, len(frame)), random_state=1).reset_index(drop=True).to_parquet(path, index=False)
    return recipe, project


def measure(recipe: Recipe, project: Project, kind: str, seed: int) -> Measured:
    """Runs one search, and scores its winner on the test rows."""
    config = SearchConfig(space=default_space(recipe), trials=TRIALS, seed=seed, **KINDS[kind])
    space = space_of(config, recipe)
    place = open_place(recipe, space, project, lambda line: None, restart=True)
    search = Search(recipe, config, space, place, is_default_space=True)
    runner, began, course = WarmRunner(search, project, lambda trial: over(trial)), time.process_time(), []

    def over(trial: Finished) -> None:
        if trial.is_complete and trial.value is not None:
            course.append((time.process_time() - began, trial.value))

    runner.trainer = Trainer(recipe, place, project)
    runner.run()
    cpu_seconds = time.process_time() - began
    finished = search.study.finished()
    best = search.study.best(finished)
    corrected = expected_of(search, best)
    assert corrected is not None and best[0].value is not None
    test = score_on_test_rows(runner.trainer, project, best[0])
    pruned = sum(one.state == "pruned" for one in finished)
    metric_better = search.objective[1]
    return Measured(
        *(recipe.name, kind, metric_better, best[0].value, cpu_seconds, pruned, course),
        *(corrected.value, corrected.optimism, test),
    )


def score_on_test_rows(trainer: Trainer, project: Project, winner: Finished) -> float:
    """Trains the winner again, and returns its metric on the test rows."""
    trainer.place = replace(trainer.place, root=trainer.place.root / "tested")
    shutil.copytree(project.artifacts(trainer.recipe.name) / "prepared", trainer.place.prepared)
    trainer.compared = trainer.load("test.parquet")
    return trainer.train(0, with_values(trainer.recipe, winner.values), lambda epoch, value: True).value


def page(found: Sequence[Measured], minutes: float) -> str:
    """Returns the page."""
    import optuna

    rows, corrections = [], []
    for recipe in dict.fromkeys(one.recipe for one in found):
        for kind in KINDS:
            of = [one for one in found if (one.recipe, one.kind) == (recipe, kind)]
            others = [one for one in found if one.recipe == recipe and one.kind != kind]
            in_time = [one.best_until(other.cpu_seconds) for one, other in zip(of, others, strict=True)]
            shown = [value for value in in_time if value is not None]
            rows.append(
                (
                    *(recipe, kind, str(len(of)), spread([one.best for one in of]), spread([one.test for one in of])),
                    *(f"{np.mean([one.cpu_seconds for one in of]):.0f} s", f"{np.mean([one.pruned for one in of]):.1f}"),
                    spread(shown) if kind == "random" and shown else "",
                )
            )
        of = [one for one in found if one.recipe == recipe]
        corrections.append(
            (
                *(recipe, str(len(of)), mean([one.best for one in of]), mean([one.expected for one in of])),
                *(mean([one.test for one in of]), mean([one.optimism for one in of])),
                mean([(one.best - one.test) * (1 if one.better == "higher" else -1) for one in of]),
            )
        )
    sizes = "; ".join(f"{name} {a:,}, {b:,} and {c:,}" for name, (a, b, c) in ROWS.items())
    intro = f"""`python -m benchmarks.search --out docs/benchmarks/search.md`, {len(found)} searches of {TRIALS} trials each in
    {minutes:.0f} minutes, on {hardware()}, optuna {optuna.__version__}, one thread; other programs ran beside it.

    Each recipe has its default space and a part of its rows (training, validation and test: {sizes}). The first trial of
    each search is the recipe as it is. Values are means over seeds, in brackets the lowest and the highest; the metric is
    that of the recipe's gate: accuracy, AUC, and mean absolute error in minutes, where lower is better. The processor time
    is that of the trials alone."""
    header = ("recipe", "search", "seeds", "best, validation", "winner, test", "processor", "pruned", "best in the time of TPE")
    corrected = (
        "recipe",
        "searches",
        "best, validation",
        "expected",
        "winner, test",
        "estimated optimism",
        "validation - test",
    )
    about = """`expected` is the bootstrap correction that `headrace search` prints: the mean over searches, beside what the
    winners really reach on test rows, which no search reads. Only where test rows are drawn like validation rows can the two
    agree: those of employment are of a later year, and those of flights of a later month."""
    return "\n\n".join(
        [
            "# Searches for hyperparameters",
            wrap(intro),
            "## TPE with pruning beside random search",
            markdown(header, rows),
            "## What the winner's score is worth",
            wrap(about),
            markdown(corrected, corrections),
        ]
    )


def mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}"


def spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="no seed begins after this time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, found = time.monotonic(), list[Measured]()
    with tempfile.TemporaryDirectory() as folder:
        parts = [prepared(name, Path(folder) / name) for name in ROWS]
        for seed in range(1, 10):
            if seed > 1 and (time.monotonic() - began) * seed / (seed - 1) > arguments.minutes * 60:
                break
            for recipe, project in parts:
                for kind in KINDS:
                    one = measure(recipe, project, kind, seed)
                    found.append(one)
                    report(
                        f"{recipe.name}, {kind}, seed {seed}: best {one.best:.4f}, test {one.test:.4f}, {one.cpu_seconds:.0f} s"
                    )
    text = page(found, (time.monotonic() - began) / 60)
    if arguments.out:
        arguments.out.write_text(f"{text}\n", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
