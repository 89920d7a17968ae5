"""Errors of a training that the user can fix, and warnings about operations that are not deterministic."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headrace.errors import TrainingError
from headrace.recipe.training import TrainConfig


@contextmanager
def memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turns out-of-memory errors of torch and Python into one that names the fields to change.

    Raises:
        TrainingError: the device is out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        device = "the GPU is" if isinstance(error, torch.cuda.OutOfMemoryError) else "this machine is"
        half, twice = max(1, config.batch_size // 2), 2 * config.gradient_accumulation_steps
        hint = f"set train.batch_size: {half} and train.gradient_accumulation_steps: {twice}, which gives the same steps"
        if config.batch_size == 1:
            hint = "use a smaller model, or a machine with more memory"
        raise TrainingError(f"{device} out of memory with train.batch_size {config.batch_size}", hint=hint) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory ran out. For the CPU's, torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def not_finite(value: float, epoch: int, where: str, config: TrainConfig) -> TrainingError:
    """Returns the error for a loss that is NaN or infinite."""
    clip = "set train.max_grad_norm (for example 1.0)" if config.max_grad_norm is None else "lower train.max_grad_norm"
    return TrainingError(
        f"the loss became {value} in epoch {epoch}, {where}",
        hint=f"lower train.learning_rate (now {config.learning_rate:g}), {clip}, "
        "or look for extreme values in the data: headrace expectations",
    )


@contextmanager
def nondeterminism() -> Iterator[set[str]]:
    """Collects the names of operations that are not deterministic from torch's warnings; other warnings are shown as usual."""
    found: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("default", message=".*does not have a deterministic implementation")
        show = warnings.showwarning

        def note(message: Warning | str, *rest: object, **named: object) -> None:
            match = re.match(r"(\S+).* does not have a deterministic implementation", str(message))
            if match:
                found.add(match[1])
            else:
                show(message, *rest, **named)  # type: ignore[arg-type]

        warnings.showwarning = note
        yield found
