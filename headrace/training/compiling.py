"""Whether torch.compile builds kernels for a run: as the recipe says, or whichever a few batches show to be faster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from headrace.console import Report
from headrace.files import read_cached_json, write_json
from headrace.training.rows import Batch
from headrace.training.step import Step

PAYS_BACK_SECONDS = 300.0
"""A run has to last so long by itself before compiling is tried, which takes 20 to 60 s."""
FASTER_BY = 1.1
"""The least gain for which the compiled model is taken: less is within what timings vary."""
TIMED_BATCHES = 5


def should_compile(wanted: str, step: Step, batch: Batch, batches: int, memory: Path, fingerprint: str, say: Report) -> bool:
    """Whether to compile the model of `step`; `batch` is a full one, and `batches` as many as are to come.

    A measured choice is kept in `memory` under the run's fingerprint: two kernels round differently, so the same run
    has to choose the same again.
    """
    if wanted == "off":
        return False
    remembered = read_cached_json(memory) or {}
    if wanted == "auto" and fingerprint in remembered:
        return bool(remembered[fingerprint])
    if wanted == "auto" and seconds_per_batch(step, batch, timed=1) * batches < PAYS_BACK_SECONDS:
        return False
    chosen = builds(step, batch, say) and (wanted == "on" or gains(step, batch, say))
    if wanted == "auto":
        write_json(memory, {**remembered, fingerprint: chosen})
    return chosen


def builds(step: Step, batch: Batch, say: Report) -> bool:
    """Whether the model compiles at all; where it does not, why is said in a line."""
    try:
        seconds_per_batch(through(compiled(step.objective), step), batch, timed=1)
    except Exception as error:  # no C++ compiler, no Triton, a network that cannot be traced: as many types of error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        say(f"the model is not compiled: {reason[:200]}")
        torch.compiler.reset()
        return False
    return True


def gains(step: Step, batch: Batch, say: Report) -> bool:
    """Whether the compiled model is faster, measured in turns so that other work on the machine slows both."""
    other = through(compiled(step.objective), step)
    pairs = [(seconds_per_batch(step, batch), seconds_per_batch(other, batch)) for _ in range(3)]
    ratio = sorted(eager / fast for eager, fast in pairs)[1]
    say(f"compiled, a batch takes {1 / ratio:.2f} times as long: {'taken' if ratio > FASTER_BY else 'left'}")
    return ratio > FASTER_BY


def compiled(objective: nn.Module) -> nn.Module:
    """The module through torch.compile, with the same parameters; asked again, torch finds the kernels it has built."""
    made: nn.Module = torch.compile(objective, dynamic=False)  # type: ignore[assignment]
    return made


def through(objective: nn.Module, step: Step) -> Step:
    """The step with another objective."""
    return Step(objective, step.update, step.precision)


def seconds_per_batch(step: Step, batch: Batch, timed: int = TIMED_BATCHES) -> float:
    """Of forward and backward, after one batch to warm up; leaves weights, statistics and random numbers as they were."""
    with as_it_was(step.objective, batch[1].device):
        step.backward(batch)
        settle(batch[1].device)
        started = time.perf_counter()
        for _ in range(timed):
            step.backward(batch)
        settle(batch[1].device)
        return (time.perf_counter() - started) / timed


@contextmanager
def as_it_was(objective: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts back the buffers, drops the gradients, and rewinds the random numbers."""
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    was_training = objective.training
    objective.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    objective.train(was_training)
    objective.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, kept in buffers:
            buffer.copy_(kept)


def settle(device: torch.device) -> None:
    """Waits for a GPU, so that what is timed is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
