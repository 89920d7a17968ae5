"""The losses of an epoch: kept on the device and read now and then, so that no step waits for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headrace.errors import TrainingError
from headrace.recipe.training import TrainConfig
from headrace.training.checkpoint import Progress
from headrace.training.distributed.single import SingleProcess

READ_EVERY = 1000
"""Batches; a loss that is no number is found after so many at the latest."""


class Losses:
    """Adds the losses of an epoch up into `progress`, each weighed by its rows."""

    def __init__(self, progress: Progress, config: TrainConfig, processes: SingleProcess) -> None:
        self.progress = progress
        self.config = config
        self.processes = processes
        self.unread: list[tuple[Tensor, int]] = []

    def add(self, loss: Tensor, rows: int) -> None:
        """Of `rows` rows, of which this process may have done a part: what it adds to their mean loss."""
        self.unread.append((loss, rows))
        if len(self.unread) == READ_EVERY:
            self.read()

    def read(self) -> None:
        """Reads what the device holds, all at once.

        Raises:
            TrainingError: a loss is no number.
        """
        if not self.unread:
            return
        values = self.processes.total(torch.stack([loss for loss, _ in self.unread])).tolist()
        first = self.progress.step - len(values) + 1
        for step, (value, (_, rows)) in enumerate(zip(values, self.unread, strict=True), first):
            if not math.isfinite(value):
                raise not_finite(value, self.progress.epoch + 1, f"batch {step}", self.config)
            self.progress.loss_sum += value * rows  # one by one: the sum is the same wherever a kill cuts the epoch
            self.progress.loss_rows += rows
        self.unread.clear()

    def mean(self) -> float:
        """Over the rows of the epoch so far."""
        self.read()
        return self.progress.loss_sum / self.progress.loss_rows


def not_finite(value: float, epoch: int, where: str, config: TrainConfig) -> TrainingError:
    """The error for a loss that is no number."""
    clip = "set train.gradient_clip (such as 1.0)" if config.gradient_clip is None else "lower train.gradient_clip"
    return TrainingError(
        f"the loss became {value} in epoch {epoch}, {where}",
        hint=f"lower train.learning_rate (now {config.learning_rate:g}), {clip}, "
        "or look for extreme values in the data: headrace expectations",
    )
