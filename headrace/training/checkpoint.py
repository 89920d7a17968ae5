"""Checkpoints: everything that resuming needs, so that a killed run ends with the same weights as an uninterrupted one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headrace.files import write_with
from headrace.training.single_process import SingleProcess

EVERY_SECONDS = 60.0
"""Between checkpoints within an epoch; each epoch ends with one as well."""
MAX_TIME_SHARE = 0.05
"""Share of the time that checkpoints within an epoch may take."""


@dataclass
class Progress:
    """The progress of a run."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Batches completed in the current epoch."""
    loss_sum: float = 0.0
    """Sum of the losses of all rows of the current epoch that were read so far."""
    loss_rows: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch: epoch, train_loss, val_loss, the metric, learning_rate."""
    best_epoch: int = 0
    best_val_loss: float = float("inf")
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    is_compiled: bool | None = None
    """Whether the model is compiled; None until that is decided."""


class Checkpoints:
    """The checkpoint of a run: restored at its start, replaced as it progresses."""

    def __init__(
        self, path: Path | None, fingerprint: str, parts: dict[str, Any], process_group: SingleProcess | None = None
    ) -> None:
        """All processes have to call `save` and `load`; the main one writes.

        Args:
            path: the file; None for a run that is too short to resume.
            fingerprint: identifies data and settings.
            parts: objects with `state_dict` and `load_state_dict`, by name.
        """
        self.path = path
        self.fingerprint = fingerprint
        self.parts = parts
        self.process_group = process_group or SingleProcess()
        self.next = time.monotonic() + EVERY_SECONDS

    def is_due(self) -> bool:
        """Returns whether the last checkpoint is old enough for another one within the epoch."""
        return time.monotonic() >= self.next

    def save(self, progress: Progress) -> None:
        """Replaces the checkpoint atomically."""
        if self.path is None:
            return
        path = self.path
        started = time.monotonic()
        state = {
            "fingerprint": self.fingerprint,
            "progress": vars(progress),
            "parts": {name: self.process_group.full_state(part.state_dict()) for name, part in self.parts.items()},
            "random": self.process_group.rng_states(),
        }
        if self.process_group.is_main:
            write_with(path, lambda beside: write(state, beside))
        ended = time.monotonic()
        self.next = ended + max(EVERY_SECONDS, (ended - started) / MAX_TIME_SHARE)

    def load(self) -> Progress | None:
        """Restores everything; returns None if no checkpoint exists, or it has other data or settings."""
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception:  # of another version of torch, or damaged: training from the start is always right
            return None
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint:
            return None
        for name, part in self.parts.items():
            part.load_state_dict(self.process_group.local_state(part, state["parts"][name]))
        self.process_group.set_rng_states(state["random"])
        return Progress(**state["progress"])


def write(state: Any, path: Path) -> None:
    """Writes through an open file. Given a path, torch would write the file's name into it, so that equal weights differ in
    bytes, and would hide the reason of a failed write."""
    with path.open("wb") as handle:
        torch.save(state, handle)
