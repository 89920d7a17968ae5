"""Averages of the weights. The average is evaluated and exported, while the weights themselves keep training.

Not torch's `AveragedModel`: it reads a counter from the device in each step, which makes a GPU wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig
from headrace.training.rows import Rows
from headrace.training.single_process import local_tensors


class NoAverage:
    """No averaging; the interface of the averages."""

    def after_step(self) -> None:
        """Updates the average after a step of the optimizer."""

    def after_epoch(self, epoch: int) -> bool:
        """Updates the average after an epoch; returns whether this is the first epoch of which an average is evaluated."""
        return False

    @contextmanager
    def in_place(self, train: Rows, batch_size: int) -> Iterator[None]:
        """Within the block, the model has the averaged weights."""
        yield

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the average."""


class Average(NoAverage):
    """An average of all parameters and floating-point buffers."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.current = [p.detach() for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()]
        self.average = [tensor.clone() for tensor in self.current]
        self.updates = 0

    @torch.no_grad()
    def update(self, weight: float) -> None:
        """Moves the average towards the weights, by `weight` of their distance."""
        torch._foreach_lerp_(local_tensors(self.average), local_tensors(self.current), weight)
        self.updates += 1

    @contextmanager
    def in_place(self, train: Rows, batch_size: int) -> Iterator[None]:
        if not self.updates:
            yield
            return
        kept = [tensor.clone() for tensor in self.current]
        try:
            self._fill(self.average)
            self._update_statistics(train, batch_size)
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, tensors: list[Tensor]) -> None:
        """Copies into the existing tensors, since a CUDA graph writes to them."""
        torch._foreach_copy_(local_tensors(self.current), local_tensors(tensors))

    def _update_statistics(self, train: Rows, batch_size: int) -> None:
        """Updates buffers that depend on the weights."""

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        saved = [tensor.to(mine.device) for tensor, mine in zip(state["average"], self.average, strict=True)]
        torch._foreach_copy_(local_tensors(self.average), local_tensors(saved))


class MovingAverage(Average):
    """average ← d · average + (1 - d) · weights after each step, where d = min(decay, (1 + t) / (10 + t)) at step t.

    The ramp forgets the first, random weights; as in TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model: ServedModel, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    def after_step(self) -> None:
        self.update(1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))


class EpochMean(Average):
    """The mean of the weights after each epoch, from `start` on (Izmailov et al. 2018, arXiv:1803.05407)."""

    def __init__(self, model: ServedModel, start: float, epochs: int) -> None:
        super().__init__(model)
        self.first = min(int(start * epochs) + 1, epochs)

    def after_epoch(self, epoch: int) -> bool:
        if epoch >= self.first:
            self.update(1 / (self.updates + 1))
        return epoch == self.first

    def _update_statistics(self, train: Rows, batch_size: int) -> None:
        """Computes batch norm's statistics for the averaged weights, in one pass over the rows."""
        if any(isinstance(part, _BatchNorm) for part in self.model.modules()):
            update_bn(([inputs] for inputs, _ in train.batches(batch_size)), _Raw(self.model))


class _Raw(nn.Module):
    """The module that `update_bn` calls, with all inputs of a batch."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.model.raw(*inputs)


def make_average(model: ServedModel, config: TrainConfig) -> NoAverage:
    """Returns the average that the recipe asks for."""
    if config.averaging is None:
        return NoAverage()
    if config.averaging.method == "ema":
        return MovingAverage(model, config.averaging.decay)
    return EpochMean(model, config.averaging.start, config.epochs)
