"""Averages of the weights. What is averaged is evaluated and exported; what trains goes on beside it.

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
from headrace.training.distributed.shards import local
from headrace.training.rows import Rows


class NoAverage:
    """The weights as they are."""

    def after_step(self) -> None:
        """Nothing to do."""

    def after_epoch(self, epoch: int) -> bool:
        """Takes the weights of an epoch in; returns whether it is the first one to count for the best."""
        return False

    @contextmanager
    def in_place(self, train: Rows, batch_size: int) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        yield

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Average(NoAverage):
    """A running average of all parameters and of the buffers that are no counters."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.current = [p.detach() for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()]
        self.average = [tensor.clone() for tensor in self.current]
        self.taken = 0

    @torch.no_grad()
    def take(self, share: float) -> None:
        """Moves the average by `share` of its distance to the weights."""
        torch._foreach_lerp_(local(self.average), local(self.current), share)
        self.taken += 1

    @contextmanager
    def in_place(self, train: Rows, batch_size: int) -> Iterator[None]:
        if not self.taken:
            yield
            return
        kept = [tensor.clone() for tensor in self.current]
        try:
            self._fill(self.average)
            self._settle(train, batch_size)
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, tensors: list[Tensor]) -> None:
        """Copies, rather than exchanges, so that the weights stay where a CUDA graph writes them."""
        torch._foreach_copy_(local(self.current), local(tensors))

    def _settle(self, train: Rows, batch_size: int) -> None:
        """Buffers follow what the average of the weights needs."""

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        saved = [tensor.to(mine.device) for tensor, mine in zip(state["average"], self.average, strict=True)]
        torch._foreach_copy_(local(self.average), local(saved))


class MovingAverage(Average):
    """average ← d · average + (1 - d) · weights after each step, where d = min(decay, (1 + t) / (10 + t)) at step t.

    The ramp lets the first, random weights fade; as in TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model: ServedModel, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    def after_step(self) -> None:
        self.take(1 - min(self.decay, (1 + self.taken) / (10 + self.taken)))


class EpochMean(Average):
    """The mean of the weights after each epoch, from `start` on (Izmailov et al. 2018, arXiv:1803.05407)."""

    def __init__(self, model: ServedModel, start: float, epochs: int) -> None:
        super().__init__(model)
        self.first = min(int(start * epochs) + 1, epochs)

    def after_epoch(self, epoch: int) -> bool:
        if epoch >= self.first:
            self.take(1 / (self.taken + 1))
        return epoch == self.first

    def _settle(self, train: Rows, batch_size: int) -> None:
        """Batch norm's statistics are those of other weights: one pass over the rows takes them anew."""
        if any(isinstance(part, _BatchNorm) for part in self.model.modules()):
            update_bn(([inputs] for inputs, _ in train.batches(batch_size)), _Raw(self.model))


class _Raw(nn.Module):
    """What `update_bn` calls, with all inputs of a batch."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.model.raw(*inputs)


def make_average(model: ServedModel, config: TrainConfig) -> NoAverage:
    """The average that the recipe names."""
    if config.averaging is None:
        return NoAverage()
    if config.averaging.method == "ema":
        return MovingAverage(model, config.averaging.decay)
    return EpochMean(model, config.averaging.start, config.epochs)
