"""The losses of an epoch, kept on the device and read rarely, so that no step waits for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headrace.recipe.training import TrainConfig
from headrace.training.checkpoint import Progress
from headrace.training.errors import not_finite
from headrace.training.single_process import SingleProcess

READ_EVERY = 1000
"""Batches after which losses are read; a loss that is NaN or infinite is found after this many at the latest."""


class EpochLosses:
    """Adds up the losses of an epoch in `progress`, weighted by rows."""

    def __init__(self, progress: Progress, config: TrainConfig, process_group: SingleProcess) -> None:
        self.progress = progress
        self.config = config
        self.process_group = process_group
        self.unread: list[tuple[Tensor, int]] = []

    def add(self, loss: Tensor, rows: int) -> None:
        """Adds the mean loss of `rows` rows, or what this process contributes to it."""
        self.unread.append((loss, rows))
        if len(self.unread) == READ_EVERY:
            self.read()

    def read(self) -> None:
        """Reads all losses from the device at once.

        Raises:
            TrainingError: a loss is NaN or infinite.
        """
        if not self.unread:
            return
        values = self.process_group.all_reduce(torch.stack([loss for loss, _ in self.unread])).tolist()
        first = self.progress.step - len(values) + 1
        for step, (value, (_, rows)) in enumerate(zip(values, self.unread, strict=True), first):
            if not math.isfinite(value):
                raise not_finite(value, self.progress.epoch + 1, f"batch {step}", self.config)
            self.progress.loss_sum += value * rows  # one by one: the sum is the same wherever a kill interrupts the epoch
            self.progress.loss_rows += rows
        self.unread.clear()

    def mean(self) -> float:
        """Returns the mean over the rows of the epoch so far."""
        self.read()
        return self.progress.loss_sum / self.progress.loss_rows
