"""Decides whether a run uses torch.compile: as the recipe says, or if it is faster on a few batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from headrace.console import Report
from headrace.files import read_json, write_json
from headrace.training.checkpoint import Checkpoints
from headrace.training.device import autocast
from headrace.training.rows import Batch

PAYS_BACK_SECONDS = 300.0
"""Compiling takes 20 to 60 s, so it is only tried on runs that would take longer than this without it."""
FASTER_BY = 1.1
"""The compiled model has to be faster by this factor: less is within the variation of timings."""
TIMED_BATCHES = 5


def should_compile(
    wanted: str,
    loss_module: nn.Module,
    precision: torch.dtype,
    batch: Batch,
    batches: int,
    checkpoints: Checkpoints,
    report: Report,
) -> bool:
    """Returns whether to compile `loss_module`.

    A measured decision is stored beside the checkpoint, with the run's fingerprint: the two versions round differently, so
    a repeated run has to decide in the same way.

    Args:
        wanted: `train.compile` of the recipe.
        batch: a full batch to measure on.
        batches: the number of batches that the run has left.
        report: is called with one line about the decision.
    """
    if wanted == "off":
        return False
    if checkpoints.path is None:  # too short to gain from it
        return False
    path, fingerprint = checkpoints.path.with_suffix(".compiled.json"), checkpoints.fingerprint
    decisions = read_json(path) or {}
    if wanted == "auto" and fingerprint in decisions:
        return bool(decisions[fingerprint])
    if wanted == "auto" and seconds_per_batch(loss_module, precision, batch, timed=1) * batches < PAYS_BACK_SECONDS:
        return False
    chosen = compiles(loss_module, precision, batch, report) and (
        wanted == "on" or is_faster(loss_module, precision, batch, report)
    )
    if wanted == "auto":
        write_json(path, {**decisions, fingerprint: chosen})
    return chosen


def compiles(loss_module: nn.Module, precision: torch.dtype, batch: Batch, report: Report) -> bool:
    """Returns whether torch can compile the module; reports the reason if it cannot."""
    try:
        seconds_per_batch(compiled(loss_module), precision, batch, timed=1)
    except Exception as error:  # no C++ compiler, no Triton, an untraceable network: each raises another type of error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        report(f"the model is not compiled: {reason[:200]}")
        torch.compiler.reset()
        return False
    return True


def is_faster(loss_module: nn.Module, precision: torch.dtype, batch: Batch, report: Report) -> bool:
    """Returns whether the compiled module is faster. They take turns, so that other load slows both."""
    modules = loss_module, compiled(loss_module)
    pairs = [[seconds_per_batch(module, precision, batch) for module in modules] for _ in range(3)]
    ratio = sorted(eager / fast for eager, fast in pairs)[1]
    verdict = "compiled" if ratio > FASTER_BY else "not compiled"
    report(f"{verdict}: with torch.compile, a batch takes {1 / ratio:.2f} times as long")
    return ratio > FASTER_BY


def compiled(loss_module: nn.Module) -> nn.Module:
    """Returns the compiled module, with the same parameters; torch reuses the kernels on later calls."""
    module: nn.Module = torch.compile(loss_module, dynamic=False)  # type: ignore[assignment]
    return module


def seconds_per_batch(loss_module: nn.Module, precision: torch.dtype, batch: Batch, timed: int = TIMED_BATCHES) -> float:
    """Measures forward and backward pass, after one to warm up; weights, statistics and random numbers stay as they were."""
    inputs, target = batch

    def forward_and_backward() -> None:
        with autocast(target.device, precision):
            loss = loss_module(inputs, target)
        loss.backward()

    with unchanged(loss_module, target.device):
        forward_and_backward()
        synchronize(target.device)
        started = time.perf_counter()
        for _ in range(timed):
            forward_and_backward()
        synchronize(target.device)
        return (time.perf_counter() - started) / timed


@contextmanager
def unchanged(loss_module: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores buffers and random numbers after the block, and drops gradients; within it, the module is in training mode."""
    buffers = [(buffer, buffer.clone()) for buffer in loss_module.buffers()]
    was_training = loss_module.training
    loss_module.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    loss_module.train(was_training)
    loss_module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, kept in buffers:
            buffer.copy_(kept)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
