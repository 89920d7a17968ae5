"""Which device trains, what it can do, and that it does the same again."""

from __future__ import annotations

import os
import random

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
            hint="set train.device to `auto` in the recipe, or train on a machine with a GPU",
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` gives bfloat16 on a GPU that has it, and float32 on the CPU.

    Raises:
        TrainingError: `bfloat16` is asked for and the GPU lacks it.
    """
    if wanted == "float32" or (wanted == "auto" and device.type == "cpu"):
        return torch.float32
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bfloat16" and not has_bfloat16:
        raise TrainingError(
            f"train.precision is `bfloat16`, and {torch.cuda.get_device_name(device)} lacks it",
            hint="set train.precision to `auto` in the recipe",
        )
    return torch.bfloat16 if has_bfloat16 else torch.float32


def seed_everything(seed: int) -> None:
    """Seeds every generator and asks torch for deterministic kernels (a warning names those that have none)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same switch as use_deterministic_algorithms(True, warn_only=True), without its import of the compiler (1.3 s).
    torch.set_deterministic_debug_mode("warn")
    # In that mode torch fills all memory that it hands out, which guards against reading what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
