"""Which device trains, and what it can do."""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from headrace.errors import TrainingError


def choose_device(wanted: str) -> torch.device:
    """`auto` gives the CUDA GPU when there is one, else the CPU.

    Raises:
        TrainingError: `cuda` is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "train.device is `cuda`, and torch sees no CUDA GPU here",
            mend="set train.device to `auto` in the recipe, or train on a machine with a GPU",
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def seed_everything(seed: int) -> None:
    """Seeds every generator and asks torch for deterministic kernels (a warning names those that have none)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same switch as use_deterministic_algorithms(True, warn_only=True), without its import of the compiler (1.3 s).
    torch.set_deterministic_debug_mode("warn")


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast on a GPU that has it (its range needs no loss scaling); full precision on the CPU."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
