"""Reports a training run while it runs: a progress bar on the terminal, curves in MLflow."""

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
"""Without a terminal, about this many epochs are printed, and the first, the last and the best."""


class NullReporter:
    """Reports nothing: the reporter of processes other than the main one."""

    def on_step(self, epoch: int, step: int) -> None:
        """Is called after each batch, with the epoch and the number of batches completed in it."""

    def on_epoch(self, progress: Progress) -> None:
        """Is called after each epoch, before its checkpoint is written."""

    def say(self, line: str) -> None:
        """Prints a line, for example what the training loop decided about compiling."""

    def finish(self, progress: Progress, weights: Path) -> None:
        """Marks the run as finished, with these weights."""


class RunReporter(NullReporter):
    """Moves the progress bar after each step, and sends finished epochs to MLflow in batches."""

    def __init__(self, run: runs.Run, fingerprint: str, bar: console.Bar, steps: int, epochs: int, unit: str = "epoch") -> None:
        self.fingerprint = fingerprint
        self._run = run
        self._bar = bar
        self._steps = steps
        self._unit = unit
        self._every = 1 if bar.is_visible else math.ceil(epochs / LINES)
        self._last_printed = 0
        self._history: list[dict[str, float]] = []
        self._sent = run.epochs()
        self._flushed = time.monotonic()

    def say(self, line: str) -> None:
        console.report(line)

    def on_step(self, epoch: int, step: int) -> None:
        self._bar.update((epoch - 1) * self._steps + step)

    def on_epoch(self, progress: Progress) -> None:
        if not self._last_printed or progress.epoch % self._every == 0:
            self._print(progress, progress.epoch)
        self._history = progress.history
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _print(self, progress: Progress, epoch: int, before: str = "") -> None:
        row = progress.history[epoch - 1]
        shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name.startswith("val_"))
        self._bar.set_description(f"{before}{self._unit} {epoch}  {shown}")
        self._last_printed = epoch

    def flush(self) -> None:
        """Sends the epochs that MLflow lacks, including those that a killed run had not sent yet."""
        rows = [row for row in self._history if row["epoch"] not in self._sent]
        self._run.log_history(rows)
        self._sent |= {int(row["epoch"]) for row in rows}
        self._flushed = time.monotonic()

    def finish(self, progress: Progress, weights: Path) -> None:
        """Marks the MLflow run as finished, and as the one that produced these weights, byte for byte."""
        if self._every > 1:
            if self._last_printed != progress.epoch:
                self._print(progress, progress.epoch)
            self._print(progress, progress.best_epoch, "best: ")
        self._history = progress.history
        self.flush()
        self._run.finish(weights)

    def interrupt(self) -> None:
        """Marks the MLflow run as killed, with the epochs it completed; the same training continues it."""
        self.flush()
        self._run.interrupt()

    def fail(self) -> None:
        """Marks the MLflow run as failed, with the epochs it completed."""
        self.flush()
        self._run.fail()


@contextmanager
def report_run(
    recipe: Recipe,
    project: Project,
    device: torch.device,
    rows: int,
    fingerprint: str,
    steps: int | None = None,
    epochs: int | None = None,
    unit: str = "epoch",
) -> Iterator[RunReporter]:
    """Opens the MLflow run (or the one that a killed training left open) and the progress bar.

    Args:
        steps: batches of an epoch, where `train.batch_size` does not tell it.
        epochs: the largest number of epochs, where `train.epochs` does not tell it.
        unit: what an epoch is called.

    Raises:
        RegistryError: MLflow's database cannot be written.
    """
    steps = steps or math.ceil(rows / recipe.train.batch_size)
    epochs = epochs or recipe.train.epochs
    run = runs.open_run(recipe, project, fingerprint, tags={"device": device.type, "train_rows": str(rows)})
    with console.bar(f"training {recipe.name} on {device.type}", steps * epochs) as bar:
        reporter = RunReporter(run, fingerprint, bar, steps, epochs, unit)
        try:
            yield reporter
        except TrainingError:
            reporter.fail()
            raise
        except KeyboardInterrupt:
            reporter.interrupt()
            raise
