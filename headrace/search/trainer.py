"""Trains trials in a process, on rows that are loaded once, and judges each one on the validation rows. N: validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.evaluation.metrics import as_probabilities, as_values, classification_metric, regression_metric
from headrace.files import write_with
from headrace.models.schema import Schema
from headrace.models.served import ServedModel
from headrace.project import Project
from headrace.recipe.models import BoostedTreesConfig
from headrace.recipe.recipe import Recipe
from headrace.recipe.search import LOSS, objective_of
from headrace.recipe.task_types import CLASSIFICATION
from headrace.search.place import Place, most_epochs
from headrace.task_types.lookup import task_type_for
from headrace.training.checkpoint import Progress
from headrace.training.device import choose_device, seed_everything
from headrace.training.errors import memory_errors
from headrace.training.loading import load_rows, preprocessed
from headrace.training.loop import TrainingRun, fit
from headrace.training.loss_weights import set_loss_weights
from headrace.training.reporting import NullReporter
from headrace.training.results import CALIBRATION_BATCH, calibrate
from headrace.training.rows import Rows
from headrace.training.run import on_device
from headrace.training.start import start_from_champion

OnEpoch = Callable[[int, float], bool]
"""Is called after each epoch with its number and value, positive or negative as the metric; returns whether to go on."""
MOST_REPORTS = 50
"""Of a trial with more epochs or rounds, one in several is reported."""
LOSS_ROWS = 2_000
"""Validation rows whose own losses are stored: each takes a call of the network's loss."""


class Pruned(Exception):
    """The trial ends early."""


@dataclass(frozen=True)
class Trained:
    """A trial that was trained to its end."""

    value: float
    epochs: int
    best_epoch: int


class Trainer:
    """Trains trials of one search."""

    def __init__(self, recipe: Recipe, place: Place, project: Project) -> None:
        """Loads the rows.

        Raises:
            DataError: they cannot be encoded.
        """
        self.recipe, self.place, self.project = recipe, place, project
        self.metric, self.better = objective_of(recipe)
        is_trees = isinstance(recipe.model, BoostedTreesConfig)  # they are trained on the CPU
        self.device = choose_device("cpu" if is_trees else recipe.train.device)
        self.task_type, self.schema = task_type_for(recipe), Schema.read(place.prepared / "schema.json")
        self.rows, self.validation = (self.load(f"{name}.parquet") for name in ("train", "validation"))
        self.compared = self.validation
        """The rows on which trials are compared."""

    def load(self, name: str) -> Rows:
        """Loads the rows of a prepared file."""
        path = self.place.prepared / name
        return load_rows(path, self.task_type, self.schema, self.recipe, self.device, self.project.state / "encoded")

    def train(self, number: int, recipe: Recipe, on_epoch: OnEpoch) -> Trained:
        """Trains with the settings of `recipe`, from the trial's checkpoint if there is one, and stores its answers.

        Raises:
            Pruned: `on_epoch` has ended the trial.
            TrainingError: the loss is not finite, or memory ran out.
        """
        seed_everything(recipe.train.seed)
        model = self.task_type.module(recipe.model, self.schema)
        if recipe.train.start == "champion":
            start_from_champion(model, self.schema, self.project, recipe.name)
        with memory_errors(recipe.train):
            progress = self._fit(number, model, recipe, on_epoch)
            calibrate(model, self.validation, recipe.train)
            value, answers = self._judge(model, progress)
        write_with(self.place.answers(number), lambda path: _save(path, answers))
        return Trained(value, progress.epoch, progress.best_epoch)

    def _fit(self, number: int, model: ServedModel, recipe: Recipe, on_epoch: OnEpoch) -> Progress:
        epochs = most_epochs(recipe)
        reporter = _Reporter(on_epoch, self.metric, self.better == "higher", model.metric_name, epochs)
        if isinstance(recipe.model, BoostedTreesConfig):
            from headrace.training.boosting import boost

            return boost(model, self.rows, self.validation, recipe.model, recipe.train, self.schema.labels, reporter)
        model = on_device(model, self.schema, self.device)
        set_loss_weights(model, recipe.train, self.rows.target, self.schema.labels)
        run = TrainingRun(self.place.checkpoint(number), f"{recipe.model!r}{recipe.train!r}", reporter)
        with preprocessed(model, recipe.train, self.rows, self.validation) as (rows, validation):
            return fit(model, rows, validation, recipe.train, run)

    @torch.inference_mode()
    def _judge(self, model: ServedModel, progress: Progress) -> tuple[float, NDArray[Any]]:
        """Returns the metric on the validation rows, and what it was computed from."""
        model.eval()
        if self.metric == LOSS:
            return progress.best_val_loss, _losses(model, self.compared)
        found = [
            (model.answer(model.raw(*inputs).float()), target) for inputs, target in self.compared.batches(CALIBRATION_BATCH)
        ]
        answers, truth = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        if not self.place.truth.exists():
            write_with(self.place.truth, lambda path: _save(path, truth))
        return measure(self.metric, truth, answers), answers


class _Reporter(NullReporter):
    def __init__(self, on_epoch: OnEpoch, metric: str, is_higher_better: bool, of_model: str, epochs: int) -> None:
        self._on_epoch, self._every = on_epoch, math.ceil(epochs / MOST_REPORTS)
        self._name = f"val_{of_model}" if metric == of_model else "val_loss"
        self._sign = -1.0 if self._name == "val_loss" and is_higher_better else 1.0

    def on_epoch(self, progress: Progress) -> None:
        if progress.epoch % self._every == 0 and not self._on_epoch(
            progress.epoch, self._sign * progress.history[-1][self._name]
        ):
            raise Pruned


def measure(metric: str, truth: NDArray[Any], answers: NDArray[Any]) -> float:
    """Returns a metric of classes or values.

    Raises:
        ExportError: an answer is not finite.
    """
    if metric in CLASSIFICATION:
        return classification_metric(metric)(truth, as_probabilities(answers, len(truth)))
    return regression_metric(metric)(truth, as_values(answers, len(truth)))


def _losses(model: ServedModel, rows: Rows) -> NDArray[np.float64]:
    """The loss of each of the first rows and its items, `(rows, 2)`: their amounts, and the weights of these."""
    found: list[tuple[float, float]] = []
    for inputs, target in rows.batches(min(CALIBRATION_BATCH, model.max_evaluation_batch, rows.max_batch)):
        raw = model.raw(*inputs).float()
        for i in range(len(target)):
            items = float(model.count_items(target[i : i + 1]))
            found.append((float(model.loss(raw[i : i + 1], target[i : i + 1])) * items, items))
        if len(found) >= LOSS_ROWS:
            break
    return np.array(found[:LOSS_ROWS], dtype=np.float64)


def _save(path: Path, values: NDArray[Any]) -> None:
    with path.open("wb") as handle:
        np.save(handle, values)
