"""Compares the models of tables on real data and writes docs/benchmarks/trees.md: `python -m benchmarks.trees`.

The data, the splits, the network and its settings are those of the recipes `employment` and `flights`; boosted trees have
their defaults, and of `flights`, which is judged by its mean absolute error, that error as their objective. Every model is
trained, exported and evaluated by the functions that the stages run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import hardware, markdown, wrap
from headrace import console
from headrace.data.ingest import ingest
from headrace.evaluation.metrics import as_probabilities, as_values, classification_metric, regression_metric
from headrace.files import read_json, write_text
from headrace.pipeline.evaluate import write_evaluation
from headrace.pipeline.export import export_model
from headrace.pipeline.prepare import prepare
from headrace.project import Project, find_project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.training.run import train_model

NAMES = ("employment", "flights")
METRICS = {"classification": "auc", "regression": "mae"}
"""The metric by which models are compared, which is that of each recipe's gate."""
UNITS = {"auc": "higher is better", "mae": "minutes; lower is better"}
RESAMPLES = 200
HEADER = ("model", "metric on the test rows", "95 % interval", "training, seconds", "rounds or epochs", "graph, MB")


@dataclass(frozen=True)
class Result:
    """What one model reached."""

    model: str
    metric: float
    low: float
    high: float
    seconds: float
    rounds: int
    graph_bytes: int

    def row(self) -> tuple[str, ...]:
        interval = f"{self.low:.4g} to {self.high:.4g}"
        return (
            self.model,
            f"{self.metric:.4g}",
            interval,
            f"{self.seconds:.0f}",
            str(self.rounds),
            f"{self.graph_bytes / 1e6:.2g}",
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.trees", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES), help="recipes (default: all)")
    parser.add_argument("--out", type=Path, help="the page (default: docs/benchmarks/trees.md)")
    parser.add_argument("--quick", action="store_true", help="one round or epoch each; its numbers are not results")
    options = parser.parse_args(arguments)
    project = find_project()
    recipes = [load_recipe(name, project) for name in options.names]
    found = {recipe.name: (METRICS[recipe.task], measure(recipe, project, options.quick)) for recipe in recipes}
    write_text(options.out or project.root / "docs" / "benchmarks" / "trees.md", page(found))
    return 0


def measure(recipe: Recipe, project: Project, quick: bool = False) -> list[Result]:
    """Trains the models on the rows of a recipe; nothing of it is registered or served."""
    scratch = Project(project.state / "benchmarks" / recipe.name, project.settings.model_copy(update={"tracking_uri": None}))
    shutil.rmtree(scratch.root, ignore_errors=True)
    ingest(recipe, project, console.report)
    scratch.data.mkdir(parents=True)
    (scratch.data / recipe.name).symlink_to((project.data / recipe.name).resolve())
    prepare(recipe, scratch)
    results = []
    for variant in variants(recipe, quick):
        shutil.copytree(scratch.artifacts(recipe.name), scratch.artifacts(variant.name), dirs_exist_ok=True)
        results.append(train(variant, scratch))
        console.report(f"{recipe.name}: {results[-1]}")
    return results


def variants(recipe: Recipe, quick: bool) -> list[Recipe]:
    """Returns the recipe with each model."""
    data = {name: getattr(recipe, name) for name in Recipe.model_fields}
    kept = recipe.train.model_dump(include={"calibrate"}, exclude_defaults=True)
    objectives = {"lightgbm": "regression_l1", "xgboost": "reg:absoluteerror"}
    found = []
    for library, objective in objectives.items():
        model: dict[str, Any] = {"name": library, **({"rounds": 1} if quick else {})}
        model |= {"objective": objective} if recipe.task == "regression" else {}
        gate = recipe.gate.model_copy(update={"require": {}, "beat_champion": None})
        found.append(
            Recipe.model_validate({**data, "name": f"{recipe.name}-{library}", "model": model, "train": kept, "gate": gate})
        )
    network = recipe.model_copy(update={"name": f"{recipe.name}-{recipe.model.name}"})
    if quick:
        network = network.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 1})})
    return [network, *found]


def train(recipe: Recipe, project: Project) -> Result:
    """Trains, exports and evaluates one model."""
    artifacts = project.artifacts(recipe.name)
    started = time.perf_counter()
    train_model(recipe, project)
    seconds = time.perf_counter() - started
    export_model(recipe, project)
    _, y_true, outputs = write_evaluation(recipe, project)
    summary = read_json(artifacts / "train" / "summary.json") or {}
    metric, low, high = with_interval(recipe, y_true, outputs)
    size = (artifacts / "export" / "model.onnx").stat().st_size
    return Result(recipe.model.name, metric, low, high, seconds, int(summary["best_epoch"]), size)


def with_interval(recipe: Recipe, y_true: NDArray[Any], outputs: NDArray[Any]) -> tuple[float, float, float]:
    """Returns the metric, and the interval in which 95 % of bootstrap samples of the test rows have it."""
    rng = np.random.default_rng(0)
    metric = METRICS[recipe.task]
    scores: Callable[..., float]
    if recipe.task == "classification":
        scores, values = classification_metric(metric), as_probabilities(outputs, len(y_true))
    else:
        scores, values = regression_metric(metric), as_values(outputs, len(y_true))
    drawn = [rng.integers(0, len(y_true), len(y_true)) for _ in range(RESAMPLES)]
    resampled = [scores(y_true[rows], values[rows]) for rows in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(scores(y_true, values)), float(low), float(high)


def page(found: dict[str, tuple[str, list[Result]]]) -> str:
    """Returns the page, from the metric and the results of each recipe."""
    lines = [
        "# Models of tables, measured",
        wrap(
            "`python -m benchmarks.trees` trains each model on the rows of a recipe and answers its test rows with the "
            "exported graph. The network is the recipe's own. Boosted trees have the defaults of `model`, with early "
            "stopping on the validation rows; of `flights`, which is judged by its mean absolute error, that error is their "
            "objective. The interval is that of 200 bootstrap samples of the test rows: it is about these rows, not about "
            "other months or years. Seconds are those of the training stage, which encodes the rows first, on a machine "
            "that other programs used too."
        ),
    ]
    for name, (metric, results) in found.items():
        lines += [f"## `{name}`, {metric} ({UNITS[metric]})", markdown(HEADER, [result.row() for result in results])]
    return "\n\n".join([*lines, f"Measured on {hardware()}."]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
