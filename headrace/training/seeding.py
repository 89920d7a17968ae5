"""Random numbers that depend on the seed and the place in the run alone: a resumed run draws what it would have drawn."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *place: int | str) -> torch.Generator:
    """A generator on the CPU, so that every device sees the same numbers; `place` is such as `("order", epoch)`."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
