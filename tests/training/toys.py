"""Small models and rows for tests of the training engine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headrace.models.schema import Numeric, Schema, Shape
from headrace.models.served import ServedModel
from headrace.recipe.models import CNNConfig, MLPConfig
from headrace.recipe.training import TrainConfig
from headrace.task_types.lookup import task_type_of
from headrace.training.checkpoint import Progress
from headrace.training.device import seed_everything
from headrace.training.loop import TrainingRun, fit
from headrace.training.reporting import NullReporter
from headrace.training.rows import Split

NUMBERS = [Numeric(name=name, mean=0.0, std=1.0, nullable=False) for name in "ab"]


def ignore(*_: Any) -> None:
    """Does nothing."""


class Callbacks(NullReporter):
    """A reporter that calls the given functions."""

    def __init__(self, on_epoch: Any = ignore, on_step: Any = ignore, say: Any = ignore) -> None:
        self.on_epoch, self.on_step, self.say = on_epoch, on_step, say  # type: ignore[method-assign]


def table_model(seed: int = 0, dropout: float = 0.0, hidden: int = 8, classes: int = 2) -> ServedModel:
    seed_everything(seed)
    schema = Schema(shape=Shape(numeric=2, outputs=classes), numeric=NUMBERS, labels=list(range(classes)))
    return task_type_of("classification").module(MLPConfig(hidden=[hidden, hidden], dropout=dropout), schema)


def table_rows(n: int, seed: int = 1) -> Split:
    """Two classes on either side of a line."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return Split((x,), (x.sum(1) > 0).long())


def image_model(seed: int = 0, dropout: float = 0.0, batch_norm: bool = False) -> ServedModel:
    seed_everything(seed)
    schema = Schema(shape=Shape(image=(1, 6, 6), outputs=2), labels=["dark", "bright"])
    config = CNNConfig(channels=[3], dropout=dropout, batch_norm=batch_norm)
    return task_type_of("image-classification").module(config, schema)


def image_rows(n: int, seed: int = 1) -> Split:
    """Images that are bright in the upper half, or not."""
    random = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 120, (n, 6, 6), dtype=torch.uint8, generator=random)
    target = torch.randint(0, 2, (n,), generator=random)
    image[target == 1, :3] += 100
    return Split((image,), target)


def train(model: ServedModel, rows: Split, config: TrainConfig, folder: Path, **named: Any) -> Progress:
    """Runs a whole training; `named` are callbacks of its reporter."""
    return fit(model, rows, rows, config, TrainingRun(folder / "checkpoint.pt", "run", Callbacks(**named)))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
