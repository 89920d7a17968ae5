"""What can go wrong in a training that a user can hint, and what a user should know of it."""

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
    """Turns what torch and Python say when memory runs out into an error that names the fields to change.

    Raises:
        TrainingError: the memory of the device does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        owner = "the GPU's memory" if isinstance(error, torch.cuda.OutOfMemoryError) else "the memory of this machine"
        half = max(1, config.batch_size // 2)
        hint = f"set train.batch_size: {half} and train.accumulate: {2 * config.accumulate}, which gives the same steps"
        if config.batch_size == 1:
            hint = "take a smaller model, or a machine with more memory"
        raise TrainingError(f"{owner} does not suffice for batches of {config.batch_size} rows", hint=hint) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Torch tells of a full CPU memory by a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def nondeterminism() -> Iterator[set[str]]:
    """Collects the names of the kernels that do not give the same again; other warnings go where they went."""
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
