"""CUDA graphs: a training step is recorded once and replayed, which saves launching each kernel.

Only on CUDA, and only without gradient accumulation. For small models, launching kernels takes longer than running them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.console import Report
from headrace.training.optimizers import ScheduledOptimizer
from headrace.training.rows import Batch, StepFunction

WARMUP_STEPS = 3
"""Steps before the recording, on a separate stream, in which torch allocates memory and chooses kernels."""


def can_record(optimizer: ScheduledOptimizer, device: torch.device, accumulation_steps: int) -> bool:
    """Returns whether a step can be recorded: the optimizer has to read its learning rate from the device."""
    is_capturable = all(group.get("capturable") for one in optimizer.optimizers for group in one.param_groups)
    return device.type == "cuda" and accumulation_steps == 1 and is_capturable


class CudaGraphStep:
    """Replays the recorded step for full batches; the first steps, and a smaller last batch, run without the graph."""

    def __init__(self, step: StepFunction, loss_module: nn.Module, batch_size: int, report: Report) -> None:
        self.step = step
        self.loss_module = loss_module
        self.batch_size = batch_size
        self.report = report
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.steps_warmed_up = 0
        self.can_record = True
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.target = self.loss = torch.empty(0)

    def __call__(self, batch: Batch, weight: float | Tensor, is_last: bool) -> Tensor:
        if not self.can_record or len(batch[1]) != self.batch_size:
            return self.step(batch, weight, is_last)
        if self.steps_warmed_up < WARMUP_STEPS:
            return self._warm_up(batch)
        if self.graph is None:
            self._record(batch)
        return self._replay(batch) if self.graph is not None else self.step(batch, weight, is_last)

    def _warm_up(self, batch: Batch) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.step(batch, 1.0, True)
        torch.cuda.current_stream().wait_stream(self.stream)
        self.steps_warmed_up += 1
        return loss

    def _record(self, batch: Batch) -> None:
        """Records the step without running it; if that is not possible, reports the reason and does not try again."""
        self.inputs, self.target = tuple(part.clone() for part in batch[0]), batch[1].clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.loss = self.step((self.inputs, self.target), 1.0, True)
            self.graph = graph
        except RuntimeError as error:
            self.report(f"no CUDA graph: {str(error).splitlines()[0][:200]}")
            self.can_record = False
            self.loss_module.zero_grad(set_to_none=True)

    def _replay(self, batch: Batch) -> Tensor:
        assert self.graph is not None
        for buffer, part in zip((*self.inputs, self.target), (*batch[0], batch[1]), strict=True):
            buffer.copy_(part)
        self.graph.replay()
        return self.loss.clone()  # the next replay overwrites it
