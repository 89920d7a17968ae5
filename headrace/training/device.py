"""The device, its precision, and seeds: random numbers that are the same on every device and in a resumed run."""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from headrace.errors import TrainingError


def choose_device(wanted: str) -> torch.device:
    """Returns the device that `train.device` names; `auto` is the CUDA GPU if there is one, else the CPU.

    Raises:
        TrainingError: `cuda` is set and the machine has no CUDA GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "train.device is `cuda`, but torch finds no CUDA GPU",
            hint="set train.device to `auto` in the recipe, or train on a machine with a GPU",
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the precision of the forward pass; `auto` is bfloat16 on a GPU that supports it, and float32 on the CPU.

    Raises:
        TrainingError: `bfloat16` is set and the GPU does not support it.
    """
    if wanted == "float32" or (wanted == "auto" and device.type == "cpu"):
        return torch.float32
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bfloat16" and not has_bfloat16:
        raise TrainingError(
            f"train.precision is `bfloat16`, but {torch.cuda.get_device_name(device)} does not support it",
            hint="set train.precision to `auto` in the recipe",
        )
    return torch.bfloat16 if has_bfloat16 else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Runs operations that gain by it in `precision`. bfloat16 has float32's range, so the loss needs no scaling."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, dtype=precision)


def seed_everything(seed: int) -> None:
    """Seeds every generator and asks torch for deterministic kernels (it warns about operations that have none)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same switch as use_deterministic_algorithms(True, warn_only=True), without its import of the compiler (1.3 s).
    torch.set_deterministic_debug_mode("warn")
    # In that mode torch fills all memory that it allocates, to guard against reading uninitialised values.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def generator(seed: int, *place: int | str) -> torch.Generator:
    """Returns a generator that depends only on the seed and the place in the run, for example `("order", epoch)`.

    It is on the CPU, so that all devices see the same numbers, and a resumed run draws what it would have drawn.
    """
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
