"""Tensors of which each process holds a part: what is done to every number alike is done to the parts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each: its part, or all of it. The parts share memory with the tensors."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor, asked without importing those."""
    return hasattr(tensor, "full_tensor")
