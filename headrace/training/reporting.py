"""What a training run shows while it runs: a progress bar on the terminal, curves in MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from headrace import console
from headrace.errors import TrainingError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.tracking import runs
from headrace.training.checkpoint import Progress

FLUSH_SECONDS = 2.0
LINES = 16
"""Where there is no terminal, of so many epochs a line is printed, and of the first, the last and the best."""


class Nobody:
    """Watches in the processes that only help."""

    def on_step(self, epoch: int, step: int) -> None:
        """Not seen."""

    def on_epoch(self, progress: Progress) -> None:
        """Not seen."""

    def say(self, line: str) -> None:
        """Not heard."""

    def finish(self, progress: Progress, weights: Path) -> None:
        """Not marked."""


class Watcher(Nobody):
    """Moves the bar each step; sends finished epochs to MLflow in batches."""

    def __init__(self, run: runs.Run, fingerprint: str, bar: console.Bar, steps: int, epochs: int) -> None:
        self.fingerprint = fingerprint
        self._run = run
        self._bar = bar
        self._steps = steps
        self._every = 1 if bar.is_drawn else math.ceil(epochs / LINES)
        self._told = 0
        self._history: list[dict[str, float]] = []
        self._sent = run.epochs()
        self._flushed = time.monotonic()

    def say(self, line: str) -> None:
        console.report(line)

    def on_step(self, epoch: int, step: int) -> None:
        self._bar.move((epoch - 1) * self._steps + step)

    def on_epoch(self, progress: Progress) -> None:
        if not self._told or progress.epoch % self._every == 0:
            self._tell(progress, progress.epoch)
        self._history = progress.history
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _tell(self, progress: Progress, epoch: int, before: str = "") -> None:
        row = progress.history[epoch - 1]
        shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name.startswith("val_"))
        self._bar.say(f"{before}epoch {epoch}  {shown}")
        self._told = epoch

    def flush(self) -> None:
        """Sends the epochs that MLflow lacks: also those that a killed training did not come to send."""
        rows = [row for row in self._history if row["epoch"] not in self._sent]
        self._run.log_history(rows)
        self._sent |= {int(row["epoch"]) for row in rows}
        self._flushed = time.monotonic()

    def finish(self, progress: Progress, weights: Path) -> None:
        """Marks the MLflow run as the one that made these weights, byte for byte."""
        if self._every > 1:
            if self._told != progress.epoch:
                self._tell(progress, progress.epoch)
            self._tell(progress, progress.best_epoch, "best: ")
        self._history = progress.history
        self.flush()
        self._run.finish(weights)

    def fail(self) -> None:
        """Marks the MLflow run as failed, with the epochs it came to."""
        self.flush()
        self._run.fail()


@contextmanager
def watch(recipe: Recipe, project: Project, device: torch.device, rows: int, fingerprint: str) -> Iterator[Watcher]:
    """Opens the MLflow run (or the one that a killed training left open) and the bar.

    Raises:
        RegistryError: MLflow's database cannot be written.
    """
    steps = math.ceil(rows / recipe.train.batch_size)
    run = runs.open_run(recipe, project, fingerprint, tags={"device": device.type, "train_rows": str(rows)})
    with console.bar(f"training {recipe.name} on {device.type}", steps * recipe.train.epochs) as bar:
        watcher = Watcher(run, fingerprint, bar, steps, recipe.train.epochs)
        try:
            yield watcher
        except TrainingError:
            watcher.fail()
            raise
