"""Transforms of a regression's target: the network learns the transformed value, and the graph answers in the target's unit."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_LOGARITHM = 80.0
"""Larger logarithms have no exponential in float32."""


def transform(values: Tensor, name: str | None) -> Tensor:
    """Returns the values that the network learns; `name` is `data.target_transform`."""
    if name == "log":
        return values.log()
    if name == "log1p":
        return values.log1p()
    return values.sqrt() if name == "sqrt" else values


def inverse(values: Tensor, name: str | None) -> Tensor:
    """Returns values in the target's unit. It never decreases, so that quantiles keep their order."""
    if name == "log":
        return values.clamp(max=LARGEST_LOGARITHM).exp()
    if name == "log1p":
        return torch.expm1(values.clamp(max=LARGEST_LOGARITHM))
    if name == "sqrt":
        return values.clamp(min=0.0).square()
    return values
