"""One batch through the model: forward, backward and, where a group of batches ends, the update."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from headrace.models.served import ServedModel
from headrace.training.rows import Batch
from headrace.training.update import Update


class Objective(nn.Module):
    """Model and loss as one module: what is compiled, and what a wrapper for several processes wraps."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return self.model.loss(self.model.raw(*inputs), target)


class Step:
    """The step as torch runs it, kernel by kernel; full batches through the compiled model, where there is one."""

    def __init__(
        self, objective: nn.Module, update: Update, precision: torch.dtype, size: int = 0, compiled: nn.Module | None = None
    ) -> None:
        """`size` is a full batch's: another size would be compiled anew, which takes longer than it saves."""
        self.objective = objective
        self.update = update
        self.precision = precision
        self.size = size
        self.compiled = compiled

    def __call__(self, batch: Batch, share: float | Tensor = 1.0, ends: bool = True) -> Tensor:
        """Returns the loss of the batch, on its device: reading it here would make a GPU wait.

        Args:
            share: of the rows of the group whose gradients are added up; 1 where each batch is a group.
            ends: whether the group ends with this batch, so that the weights move.
        """
        loss = self.backward(batch, share)
        if ends:
            self.update()
        return loss

    def backward(self, batch: Batch, share: float | Tensor = 1.0) -> Tensor:
        """Adds the gradients of `share` times the mean loss of the batch."""
        inputs, target = batch
        with autocast(target.device, self.precision):
            objective = self.compiled if self.compiled is not None and len(target) == self.size else self.objective
            loss: Tensor = objective(inputs, target)
        is_whole = isinstance(share, float) and share == 1.0  # asking a tensor would make a GPU wait
        (loss if is_whole else loss * share).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Runs what gains by it in `precision`. bfloat16 has float32's range, so the loss needs no scaling."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, dtype=precision)
