"""Compares models of a table by cross-validation on the sample, so that `headrace new` proposes the better one.

Rows, epochs and rounds are bounded: it takes seconds, and its figures are a guide, not what a release will reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.recipe.models import BoostedTreesConfig
from headrace.recipe.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from headrace.models.served import ServedModel
    from headrace.training.rows import Split

FEWEST_ROWS = 200
"""With fewer rows chance decides which model is better."""
MOST_ROWS = 2_000
FOLDS = 3
HELD_OUT = 0.15
"""Share of a fold's training rows that decide when training stops."""
MOST_EPOCHS = 20
MOST_ROUNDS = 100
SEED = 7
METRICS = {"classification": "log_loss", "regression": "mae"}


@dataclass(frozen=True)
class Comparison:
    """What each model reached on rows that it was not trained on."""

    metric: str
    """Lower is better."""
    rows: int
    models: dict[str, float]
    """The mean over the folds, by the name of the model."""

    @property
    def best(self) -> str:
        """The better model; of equal ones the first."""
        return min(self.models, key=lambda name: self.models[name])

    def line(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.models.items())
        return (
            f"{self.best}, as {FOLDS}-fold cross-validation on {self.rows:,} rows says ({self.metric}, lower is better): "
            f"{figures}; --model NAME chooses"
        )

    def to_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "rows": self.rows, "folds": FOLDS, "models": self.models, "chosen": self.best}


def sample_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows on which models are compared, in their order."""
    order = np.random.default_rng(SEED).permutation(len(frame))[:MOST_ROWS]
    return frame.iloc[np.sort(order)].reset_index(drop=True)


def compare(frame: pd.DataFrame, recipes: Mapping[str, Recipe]) -> Comparison | None:
    """Trains each model on two thirds of the rows and measures it on the last third, three times.

    Args:
        frame: rows with the columns of the recipes, and with a target.
        recipes: recipes that differ in their model, by its name.

    Returns:
        None if the rows are too few.

    Raises:
        DataError, TrainingError: the rows cannot be learned from.
    """
    if len(frame) < FEWEST_ROWS:
        return None
    import torch

    from headrace.training.device import seed_everything

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for networks of this size, even where other cores are free
    seed_everything(SEED)
    try:
        means = {
            name: round(float(np.mean([_measure(frame, *fold, recipe) for fold in _folds(len(frame))])), 6)
            for name, recipe in recipes.items()
        }
    finally:
        torch.set_deterministic_debug_mode("default")
        torch.set_num_threads(threads)
    return Comparison(METRICS[next(iter(recipes.values())).task], len(frame), means)


def _folds(rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields the rows to learn from, in random order, and the rows to measure on."""
    parts = np.array_split(np.random.default_rng(SEED).permutation(rows), FOLDS)
    for i, test in enumerate(parts):
        yield np.concatenate([part for j, part in enumerate(parts) if j != i]), test


def _measure(frame: pd.DataFrame, train: NDArray[np.int64], test: NDArray[np.int64], recipe: Recipe) -> float:
    """Returns the metric of a model that was trained on the rows `train`, for the rows `test`."""
    import torch

    from headrace.evaluation.metrics import as_probabilities, as_values, classification_metric, regression_metric
    from headrace.task_types.lookup import task_type_for
    from headrace.training.loading import to_device

    task_type = task_type_for(recipe)
    schema = task_type.fit(frame, recipe)  # of all rows: each label is known, however rare
    rows = to_device(frame, task_type, schema, recipe, torch.device("cpu"))
    torch.manual_seed(SEED)
    model = task_type.module(recipe.model, schema)
    held_out = max(1, int(HELD_OUT * len(train)))
    _train(model, _take(rows, train[held_out:]), _take(rows, train[:held_out]), recipe, schema.labels)
    with torch.inference_mode():
        answers = model.eval()(*_take(rows, test).inputs).numpy()
    truth = rows.target.numpy()[test]
    if recipe.task == "classification":
        return classification_metric(METRICS[recipe.task])(truth, as_probabilities(answers, len(test)))
    return regression_metric(METRICS[recipe.task])(truth, as_values(answers, len(test)))


def _train(model: ServedModel, train: Split, validation: Split, recipe: Recipe, labels: Any) -> None:
    if isinstance(recipe.model, BoostedTreesConfig):
        from headrace.training.boosting import boost

        config = recipe.model.model_copy(update={"rounds": min(MOST_ROUNDS, recipe.model.rounds), "threads": 1})
        boost(model, train, validation, config, recipe.train, labels)
        return
    from headrace.training.loop import TrainingRun, fit

    changes = {"epochs": min(MOST_EPOCHS, recipe.train.epochs), "compile": "off", "device": "cpu"}
    fit(model, train, validation, recipe.train.model_copy(update=changes), TrainingRun(None, "comparison"))


def _take(rows: Split, index: NDArray[np.int64]) -> Split:
    import torch

    from headrace.training.rows import Split

    chosen = torch.from_numpy(index)
    return Split(tuple(part[chosen] for part in rows.inputs), rows.target[chosen])
