"""The interface between the training loop and several processes; a single process implements it by doing nothing.

Each process trains on its rows of every batch, so that the steps are those of one process. `parallel.py` implements the
interface for several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from headrace.console import Report
from headrace.models.served import ServedModel
from headrace.training.rows import Batch, Rows, StepFunction

Count = Callable[[Tensor], int | Tensor]
"""Returns by what a mean over targets is divided: a number of rows or tokens."""


class SingleProcess:
    """Trains alone."""

    rank: int = 0
    world_size: int = 1
    is_main: bool = True
    """Whether this process writes checkpoints, curves, weights and the MLflow run."""

    def setup(self, fingerprint: str, seed: int) -> None:
        """Prepares the process, after the model is built and before training.

        Raises:
            TrainingError: the processes have different data, settings or code; `fingerprint` is this process's.
        """

    def local_rows(self, rows: int) -> slice:
        """Returns which of a batch's rows this process trains on; never none, since all processes take part in each step."""
        return slice(0, rows)

    def local_batch(self, batch: Batch) -> Batch:
        """Returns this process's rows of a batch."""
        return batch

    def local_weight(self, target: Tensor, count: Count) -> float | Tensor:
        """Returns the weight of this process's rows in the mean over a batch with these targets."""
        return 1.0

    def scale_loss(self, loss: Tensor, weight: float | Tensor) -> Tensor:
        """Returns what this process contributes to the loss of the whole batch."""
        return loss

    def wrap(self, loss_module: nn.Module, rows: Rows, batch_size: int) -> nn.Module:
        """Returns the module that the training step calls; for several processes, one that adds up their gradients."""
        return loss_module

    def wrap_step(self, step: StepFunction, loss_module: nn.Module, report: Report) -> StepFunction:
        """Returns the training step that all processes run together."""
        return step

    def all_reduce(self, values: Tensor) -> Tensor:
        """Returns the sum over all processes."""
        return values

    def broadcast(self, flag: bool) -> bool:
        """Returns the main process's flag, for decisions that depend on a clock."""
        return flag

    def full_state(self, state: Any) -> Any:
        """Returns `state` with full tensors instead of shards."""
        return state

    def local_state(self, part: Any, state: Any) -> Any:
        """Returns `state`, with full tensors, in the form that `part.load_state_dict` needs: the inverse of `full_state`."""
        return state

    def load_full_weights(self, model: ServedModel, weights: dict[str, Tensor]) -> None:
        """Loads `weights` into `model`, unless it is sharded."""
        model.load_state_dict(weights)

    def rng_states(self) -> dict[str, list[Any]]:
        """Returns the states of torch's generators, one per process."""
        return {"cpu": [torch.get_rng_state()], "cuda": [cuda_rng_state()]}

    def set_rng_states(self, states: dict[str, list[Any]]) -> None:
        """Restores this process's generators, unless the states are of a run with another number of processes."""
        if len(states["cpu"]) == self.world_size:
            torch.set_rng_state(states["cpu"][self.rank])
            if torch.cuda.is_available() and states["cuda"][self.rank] is not None:
                torch.cuda.set_rng_state(states["cuda"][self.rank])


def cuda_rng_state() -> Tensor | None:
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def local_rows(rank: int, world_size: int, rows: int) -> slice:
    """Returns the rows of process `rank`: consecutive, as even as possible, with one more for the first processes."""
    each, rest = divmod(rows, world_size)
    start = rank * each + min(rank, rest)
    return slice(start, start + each + (rank < rest))


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns this process's shard of each tensor, or all of it if it is not sharded; they share memory with the tensors."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def is_sharded(tensor: object) -> bool:
    """Returns whether `tensor` is a DTensor, without importing that class."""
    return hasattr(tensor, "full_tensor")
