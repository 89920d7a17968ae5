"""Trains what `prune` and `distil` make: the training rows, loop and settings are those of the recipe."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from headrace import console
from headrace.compression.distillation import Distillation
from headrace.compression.pruning import finish_pruning, share_of_zeros, start_pruning
from headrace.compression.smaller import half_as_wide
from headrace.models.schema import Schema
from headrace.models.served import ServedModel
from headrace.project import Project
from headrace.recipe.compress import CompressConfig
from headrace.recipe.training import TrainConfig
from headrace.task_types.lookup import task_type_for
from headrace.training.checkpoint import Progress
from headrace.training.device import choose_device, seed_everything
from headrace.training.loading import load_rows
from headrace.training.loop import TrainingRun, fit
from headrace.training.loss_weights import set_loss_weights
from headrace.training.reporting import NullReporter
from headrace.training.results import calibrate, fingerprint_of
from headrace.training.run import on_device

if TYPE_CHECKING:
    from headrace.recipe.recipe import Recipe


class LineReporter(NullReporter):
    """Prints a line for each epoch."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_epoch(self, progress: Progress) -> None:
        row = progress.history[-1]
        shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name.startswith("val_"))
        console.report(f"{self._name}: epoch {progress.epoch}  {shown}")

    def say(self, line: str) -> None:
        console.report(line)


def train_smaller(
    model: ServedModel, config: CompressConfig, recipe: Recipe, schema: Schema, project: Project
) -> tuple[ServedModel, list[str]]:
    """Returns the pruned model or the student, on the CPU in evaluation mode, and remarks. `model` is pruned in place.

    A training that was interrupted continues from its checkpoint.

    Raises:
        TrainingError: as `headrace.training.run.train_model`.
        RecipeError: the method cannot be used with this model.
    """
    prepared, task_type = project.artifacts(recipe.name) / "prepared", task_type_for(recipe)
    settings = settings_of(config, recipe.train)
    device = choose_device(settings.device)
    seed_everything(settings.seed)
    before = sum(p.numel() for p in model.parameters())
    layers: list[tuple[nn.Module, str]] = []
    if config.method == "prune":
        layers = start_pruning(model, config.share)
        smaller = trained = model
    else:
        student = config.student or half_as_wide(recipe.model)
        smaller = task_type.module(student, schema)
        trained = Distillation(on_device(model, schema, device), smaller, config.temperature, config.soft)
    trained = on_device(trained, schema, device)
    train, validation = (
        load_rows(prepared / f"{name}.parquet", task_type, schema, recipe, device, project.state / "encoded")
        for name in ("train", "validation")
    )
    set_loss_weights(trained, settings, train.target, schema.labels)
    checkpoint = project.state / "checkpoints" / f"{recipe.name}-{config.method}.pt"
    weights = project.artifacts(recipe.name) / "train" / "model.pt"
    start = hashlib.sha256(weights.read_bytes() + repr(config).encode()).digest()
    run = TrainingRun(checkpoint, fingerprint_of(recipe, prepared, project.root, start), LineReporter(config.method))
    fit(trained, train, validation, settings, run)
    if layers:
        finish_pruning(layers)
    calibrate(smaller, validation, settings)
    checkpoint.unlink(missing_ok=True)
    smaller = smaller.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    if layers:
        return smaller, [f"{share_of_zeros(layers):.1%} of the weights of {len(layers)} layers are zero"]
    after = sum(p.numel() for p in smaller.parameters())
    return smaller, [f"{after:,} parameters instead of {before:,}"]


def settings_of(config: CompressConfig, train: TrainConfig) -> TrainConfig:
    """Returns the settings of this training: those of the recipe, with the section's number of epochs, in one process."""
    epochs = config.epochs or (train.epochs if config.method == "distil" else max(1, train.epochs // 3))
    changes = {"epochs": epochs, "processes": 1, "strategy": "ddp", "compile": "off", "start": "random"}
    return train.model_copy(update=changes)
