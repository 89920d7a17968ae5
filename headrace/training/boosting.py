"""Trains boosted trees: rounds instead of epochs, each followed by an evaluation on the validation rows. N: all rows."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.errors import TrainingError
from headrace.files import write_json
from headrace.models.boosted_trees import BoostedTrees
from headrace.models.schema import Schema
from headrace.models.served import Classifier, Regressor, ServedModel
from headrace.models.tree_features import TreeFeatures
from headrace.processes import raise_if_interrupted
from headrace.project import Project
from headrace.recipe.models import BoostedTreesConfig
from headrace.recipe.recipe import Recipe
from headrace.recipe.training import TrainConfig
from headrace.runtime.memory import free_memory
from headrace.task_types.lookup import task_type_for
from headrace.training.boosters import Booster, Part, booster_for
from headrace.training.checkpoint import Progress
from headrace.training.device import seed_everything
from headrace.training.loading import load_rows
from headrace.training.loss_weights import class_weights
from headrace.training.reporting import NullReporter, report_run
from headrace.training.results import calibrate, fingerprint_of, summary_of, write_weights
from headrace.training.rows import Rows

CHUNK_ROWS = 4096
"""Rows whose features are computed at once."""
COPIES = 2
"""The library holds the rows a second time while it sorts them into bins."""


def train_trees(recipe: Recipe, project: Project) -> None:
    """Trains on `prepared/` and writes the same files as the training of a network.

    No checkpoint is written: it takes seconds to minutes, and a run that was killed starts again and gives the same bytes.

    Raises:
        TrainingError: the rows do not fit into memory, or the loss is NaN or infinite.
        RecipeError: the task cannot be learned by trees, or a class weight names an unknown label.
    """
    config = recipe.model
    assert isinstance(config, BoostedTreesConfig)
    prepared, out = project.artifacts(recipe.name) / "prepared", project.artifacts(recipe.name) / "train"
    device = torch.device("cpu")
    seed_everything(recipe.train.seed)
    task_type, schema = task_type_for(recipe), Schema.read(prepared / "schema.json")
    model = task_type.module(config, schema)
    trees = trees_of(model, config)
    rows, validation = (
        load_rows(prepared / f"{name}.parquet", task_type, schema, recipe, device, project.state / "encoded")
        for name in ("train", "validation")
    )
    version = importlib.import_module(config.name).__version__
    fingerprint = fingerprint_of(recipe, prepared, project.root, f"{config.name} {version}".encode())
    sizes = {"steps": 1, "epochs": config.rounds}
    with report_run(recipe, project, device, len(rows), fingerprint, **sizes, unit="round") as reporter:
        progress = boost(model, rows, validation, config, recipe.train, schema.labels, reporter)
        calibration = calibrate(model, validation, recipe.train)
        write_weights(out, model, progress)
        summary = summary_of(model, progress, recipe, len(rows), len(validation))
        trees_summary = {"unit": "round", "parameters": trees.nodes(), "stopped_early": progress.epoch < config.rounds}
        how = {"device": "cpu", "precision": "float32", "deterministic": True}
        write_json(out / "summary.json", summary | trees_summary | how | calibration)
        reporter.finish(progress, out / "model.pt")


def trees_of(model: ServedModel, config: BoostedTreesConfig) -> BoostedTrees:
    """Returns the trees of a model.

    Raises:
        TrainingError: it is not a model of the columns of a table, with one class or value per row.
    """
    is_known = type(model) in (Classifier, Regressor) and isinstance(model.preprocess, TreeFeatures)
    if not isinstance(model.network, BoostedTrees) or not is_known:
        raise TrainingError(
            f"{config.name} learns a class or a number from the columns of a table only",
            where="model.name",
            hint="use task: classification or regression, or another model",
        )
    return model.network


def boost(
    model: ServedModel,
    train: Rows,
    validation: Rows,
    config: BoostedTreesConfig,
    settings: TrainConfig,
    labels: Sequence[str | int] | None,
    reporter: NullReporter | None = None,
) -> Progress:
    """Trains the trees of `model` in place, and keeps those up to the round with the lowest validation loss.

    Raises:
        TrainingError: the rows do not fit into memory, or the loss is NaN or infinite.
        RecipeError: `train.class_weights` names an unknown label.
    """
    reporter = reporter or NullReporter()
    trees = trees_of(model, config)
    parts = _part(model, train, _weights(settings, train, labels)), _part(model, validation, None)
    booster = booster_for(model, config, *parts, settings.seed)
    progress = Progress()
    while progress.epoch < config.rounds and not _has_stalled(progress, config):
        raise_if_interrupted()
        is_finished = booster.update()
        _record(booster, progress, model, config)
        reporter.on_step(progress.epoch, 1)
        reporter.on_epoch(progress)
        if is_finished:  # no split improves the loss any more
            break
    trees.set_content(booster.content(progress.best_epoch))
    return progress


def _record(booster: Booster, progress: Progress, model: ServedModel, config: BoostedTreesConfig) -> None:
    """Adds a round to the history.

    Raises:
        TrainingError: the loss is NaN or infinite.
    """
    train_loss, val_loss, val_metric = booster.evaluate()
    progress.epoch += 1
    if not math.isfinite(val_loss):
        raise TrainingError(
            f"the loss became {val_loss} in round {progress.epoch}, on the validation rows",
            hint=f"lower model.learning_rate (now {config.learning_rate:g}), or look for extreme values in the data: "
            "headrace expectations",
        )
    progress.history.append(
        {
            "epoch": progress.epoch,
            "train_loss": train_loss,
            "val_loss": val_loss,
            f"val_{model.metric_name}": val_metric,
            "learning_rate": config.learning_rate,
        }
    )
    if val_loss < progress.best_val_loss:
        progress.best_val_loss, progress.best_epoch = val_loss, progress.epoch


def _has_stalled(progress: Progress, config: BoostedTreesConfig) -> bool:
    patience = config.early_stopping_rounds
    return patience is not None and progress.epoch - progress.best_epoch >= patience


@torch.no_grad()
def _part(model: ServedModel, rows: Rows, weights: NDArray[np.float32] | None) -> Part:
    """Returns the features and targets of all rows.

    Raises:
        TrainingError: they do not fit into memory.
    """
    batches = rows.batches(CHUNK_ROWS)
    first = next(rows.batches(1))
    (row,) = model.preprocess(*first[0])
    size, free = COPIES * 4 * len(rows) * row.shape[1], free_memory()
    if size > free:
        raise TrainingError(
            f"{len(rows):,} rows of {row.shape[1]:,} features take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            where="model.name",
            hint="use mlp, which reads rows in parts; or fewer rows (train.window) or columns (data.columns)",
        )
    features = np.empty((len(rows), row.shape[1]), dtype=np.float32)
    start = 0
    for inputs, target in batches:
        (part,) = model.preprocess(*inputs)
        features[start : start + len(target)] = part.numpy()
        start += len(target)
    return Part(features, rows.target.numpy(), weights)


def _weights(settings: TrainConfig, rows: Rows, labels: Sequence[str | int] | None) -> NDArray[np.float32] | None:
    """Returns the weight of each training row `(N,)`, or None for equal ones; raises `RecipeError` as `class_weights`."""
    if settings.class_weights == "none":
        return None
    if labels is None:
        raise TrainingError(
            "a regression has no classes to weight", where="train.class_weights", hint="remove train.class_weights"
        )
    found: NDArray[np.float32] = class_weights(settings.class_weights, rows.target, labels)[rows.target].numpy()
    return found
