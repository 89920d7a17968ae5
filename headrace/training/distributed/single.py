"""The processes that train one model together, as the loop sees them; by itself, a process does all of it.

A batch of the recipe is divided among them, so that the steps are those of one process. `distributed.py` has those that are
several; this file is all that one process needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headrace.console import Report
from headrace.models.served import ServedModel
from headrace.training.rows import Batch, Rows
from headrace.training.step import Objective, Step

Count = Callable[[Tensor], int | Tensor]
"""From targets to what a mean over them is divided by, such as rows or tokens."""


class SingleProcess:
    """Nobody to share with."""

    rank: int = 0
    size: int = 1
    is_first: bool = True
    """Whether this is the process that writes what is written once: checkpoints, curves, weights, MLflow."""

    def begin(self, fingerprint: str, seed: int) -> None:
        """Once the model is made, before it trains.

        Raises:
            TrainingError: the processes are about to train other things; `fingerprint` says what this one trains.
        """

    def rows(self, of: int) -> slice:
        """Which of a batch's rows this process takes; never none, for every process has to take each step."""
        return slice(0, of)

    def share(self, target: Tensor, count: Count) -> float | Tensor:
        """How much the rows of this process weigh in the mean over a batch whose targets are `target`."""
        return 1.0

    def take(self, batch: Batch) -> Batch:
        """This process's rows of a batch."""
        return batch

    def weighed(self, loss: Tensor, share: float | Tensor) -> Tensor:
        """What this process adds to the loss of the whole batch."""
        return loss

    def wrap(self, objective: Objective, rows: Rows, size: int) -> nn.Module:
        """What the step calls in place of `objective`: adds up gradients over the processes; tried on `size` of the `rows`."""
        return objective

    def shared(self, step: Step, say: Report) -> Step:
        """The step that all processes take together."""
        return step

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        return values

    def agreed(self, flag: bool) -> bool:
        """What the first process says: for what a clock decides."""
        return flag

    def whole(self, state: Any) -> Any:
        """`state` with its tensors whole, where each process holds a part of them."""
        return state

    def restored(self, part: Any, state: Any) -> Any:
        """The inverse of `whole`: `state` as `part.load_state_dict` takes it."""
        return state

    def fill(self, model: ServedModel, weights: dict[str, Tensor]) -> None:
        """Puts `weights` into `model`, where it is whole."""
        model.load_state_dict(weights)

    def random_states(self) -> dict[str, list[Any]]:
        """Of torch's generators, one a process."""
        return {"cpu": [torch.get_rng_state()], "cuda": [cuda_rng_state()]}

    def restore_random_states(self, states: dict[str, list[Any]]) -> None:
        """This process's own; what a run with another number of processes left is none, and changes nothing."""
        if len(states["cpu"]) == self.size:
            torch.set_rng_state(states["cpu"][self.rank])
            if torch.cuda.is_available() and states["cuda"][self.rank] is not None:
                torch.cuda.set_rng_state(states["cuda"][self.rank])


def cuda_rng_state() -> Tensor | None:
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def rows_of(rank: int, size: int, of: int) -> slice:
    """Rows that process `rank` of `size` takes of `of` rows: in order, as evenly as can be, and more to the first ones."""
    each, more = divmod(of, size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))
