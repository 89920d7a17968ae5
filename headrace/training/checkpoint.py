"""Checkpoints: all that resuming needs, so that a killed run ends with the same weights as one never killed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headrace.files import write_with


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs completed."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row an epoch: epoch, train_loss, val_loss, the metric, learning_rate."""
    best_epoch: int = 0
    best_val_loss: float = float("inf")
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)


def save(path: Path, fingerprint: str, progress: Progress, parts: dict[str, Any], shuffle: torch.Generator) -> None:
    """Writes a checkpoint whole or not at all; `parts` are the model, optimizer and schedule (by `state_dict`)."""
    state = {
        "fingerprint": fingerprint,
        "progress": vars(progress),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "shuffle": shuffle.get_state(),
        "cpu_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    write_with(path, lambda beside: write(state, beside))


def write(state: Any, path: Path) -> None:
    """Through an open file: torch would otherwise write the file's name into it, so that equal weights differed in bytes,
    and would not say why a write failed."""
    with path.open("wb") as handle:
        torch.save(state, handle)


def load(path: Path, fingerprint: str, parts: dict[str, Any], shuffle: torch.Generator) -> Progress | None:
    """Restores everything from `path`; None when there is no checkpoint, or it is of other data or settings."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # a checkpoint of another torch version, or a damaged one: training anew is always right
        return None
    if not isinstance(state, dict) or state.get("fingerprint") != fingerprint:
        return None
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    shuffle.set_state(state["shuffle"])
    torch.set_rng_state(state["cpu_rng"])
    if torch.cuda.is_available() and state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return Progress(**state["progress"])
