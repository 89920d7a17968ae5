"""Rotary positions (Su et al. 2021, arXiv:2104.09864): features are rotated by an angle that depends on the position."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def angles(length: int, features: int, device: torch.device) -> Tensor:
    """Returns cosines and sines for the positions 0 to `length` - 1, `(2, length, features / 2)`, `features` even."""
    half = features // 2
    frequency = BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()])


def angles_at(places: Tensor, features: int) -> Tensor:
    """Returns the same for any positions `places` `(B, L)`, `(2, B, L, features / 2)`; large ones need double precision."""
    half = features // 2
    frequency = BASE ** (-torch.arange(half, device=places.device, dtype=torch.float64) / half)
    turned = places[..., None].to(torch.float64) * (frequency / (2 * torch.pi))
    angle = ((turned - turned.floor()) * (2 * torch.pi)).to(torch.float32)
    return torch.stack([angle.cos(), angle.sin()])


def turn(states: Tensor, turns: Tensor) -> Tensor:
    """Rotates each pair of features of `(..., L, features)` by its position's angle (eq. 34); pairs are one of each half."""
    cos, sin = turns.to(states.dtype).unbind(0)
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
