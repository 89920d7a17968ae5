"""Checkpoints: all that resuming needs, so that a killed run ends with the same weights as one never killed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headrace.files import write_with
from headrace.training.distributed.single import SingleProcess

EVERY_SECONDS = 60.0
"""Within an epoch; at the end of each epoch there is one in any case."""
MOST_OF_THE_TIME = 0.05
"""Share of the time that checkpoints within an epoch may take."""


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Batches done of the epoch under way."""
    loss_sum: float = 0.0
    """Of the epoch under way: the loss of each row read so far, added up."""
    loss_rows: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One row an epoch: epoch, train_loss, val_loss, the metric, learning_rate."""
    best_epoch: int = 0
    best_val_loss: float = float("inf")
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    is_compiled: bool | None = None
    """Whether the model is compiled; None until that is chosen."""


class Checkpoints:
    """The one checkpoint of a run: restored at its start, replaced as it goes."""

    def __init__(self, path: Path, fingerprint: str, parts: dict[str, Any], processes: SingleProcess | None = None) -> None:
        """`parts` have `state_dict` and `load_state_dict`; `fingerprint` names data and settings. Of several processes each
        one calls `save` and `load` as the others do, and the first one writes."""
        self.path = path
        self.fingerprint = fingerprint
        self.parts = parts
        self.processes = processes or SingleProcess()
        self.next = time.monotonic() + EVERY_SECONDS

    def is_due(self) -> bool:
        """Whether a long epoch has gone on for long enough without one."""
        return time.monotonic() >= self.next

    def save(self, progress: Progress) -> None:
        """Writes all of it or nothing."""
        started = time.monotonic()
        state = {
            "fingerprint": self.fingerprint,
            "progress": vars(progress),
            "parts": {name: self.processes.whole(part.state_dict()) for name, part in self.parts.items()},
            "random": self.processes.random_states(),
        }
        if self.processes.is_first:
            write_with(self.path, lambda beside: write(state, beside))
        ended = time.monotonic()
        self.next = ended + max(EVERY_SECONDS, (ended - started) / MOST_OF_THE_TIME)

    def load(self) -> Progress | None:
        """Restores everything; None when there is no checkpoint, or it is of other data or settings."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception:  # a checkpoint of another torch version, or a damaged one: training anew is always right
            return None
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint:
            return None
        for name, part in self.parts.items():
            part.load_state_dict(self.processes.restored(part, state["parts"][name]))
        self.processes.restore_random_states(state["random"])
        return Progress(**state["progress"])


def write(state: Any, path: Path) -> None:
    """Through an open file: torch would otherwise write the file's name into it, so that equal weights differed in bytes,
    and would not say why a write failed."""
    with path.open("wb") as handle:
        torch.save(state, handle)
