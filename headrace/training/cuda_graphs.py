"""CUDA graphs: a whole step recorded once and replayed, which spares a GPU the launching of each kernel.

Only on CUDA, and only where every batch is a step. For small models the launches take longer than the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.console import Report
from headrace.training.rows import Batch
from headrace.training.step import Step
from headrace.training.update import Update

WARM_UP = 3
"""Steps run as usual before the recording, on a stream of their own: torch allocates and chooses kernels in them."""


def fits(update: Update, device: torch.device, batches_a_step: int) -> bool:
    """Whether a step can be recorded: the optimizer has to read its learning rate from the device."""
    is_capturable = all(group.get("capturable") for optimizer in update.optimizers for group in optimizer.param_groups)
    return device.type == "cuda" and batches_a_step == 1 and is_capturable


class GraphStep(Step):
    """Replays the recorded step for full batches; the first ones, and a last one of fewer rows, run as usual."""

    def __init__(self, step: Step, say: Report) -> None:
        super().__init__(step.objective, step.update, step.precision, step.size, step.compiled)
        self.say = say
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.warmed = 0
        self.can_record = True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.target = self.loss = torch.empty(0)

    def __call__(self, batch: Batch, share: float | Tensor = 1.0, ends: bool = True) -> Tensor:
        if not self.can_record or len(batch[1]) != self.size:
            return super().__call__(batch, share, ends)
        if self.warmed < WARM_UP:
            return self._warm_up(batch)
        if self.graph is None:
            self._record(batch)
        return self._replay(batch) if self.graph is not None else super().__call__(batch, share, ends)

    def _warm_up(self, batch: Batch) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = super().__call__(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        self.warmed += 1
        return loss

    def _record(self, batch: Batch) -> None:
        """Records without running; where the model does what cannot be recorded, says so and leaves it."""
        self.inputs, self.target = tuple(part.clone() for part in batch[0]), batch[1].clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.loss = self.backward((self.inputs, self.target))
                self.update.apply()
            self.graph = graph
        except RuntimeError as error:
            self.say(f"no CUDA graph: {str(error).splitlines()[0][:200]}")
            self.can_record = False
            self.objective.zero_grad(set_to_none=True)

    def _replay(self, batch: Batch) -> Tensor:
        assert self.graph is not None
        for place, part in zip((*self.inputs, self.target), (*batch[0], batch[1]), strict=True):
            place.copy_(part)
        self.update.advance()
        self.graph.replay()
        return self.loss.clone()  # the next replay writes over it
