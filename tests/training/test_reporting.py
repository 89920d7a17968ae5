"""What a training prints: a bar on a terminal; elsewhere a few lines, however many epochs there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from headrace import console
from headrace.training.checkpoint import Progress
from headrace.training.reporting import RunReporter


class Silent:
    """An MLflow run that keeps nothing."""

    def epochs(self) -> set[int]:
        return set()

    def log_history(self, rows: list[dict[str, float]]) -> None: ...

    def finish(self, weights: Path) -> None: ...


def printed(epochs: int, done: int, best: int, capsys: pytest.CaptureFixture[str], first: int = 1) -> list[str]:
    """What a run of `epochs` says that goes from epoch `first` to `done`."""
    progress = Progress(history=[{"epoch": i, "val_loss": float(i)} for i in range(1, first)])
    console.err.cache_clear()  # it writes where the test looks
    with console.bar("training", epochs) as bar:
        reporter = RunReporter(cast(Any, Silent()), "run", bar, 1, epochs)
        for epoch in range(first, done + 1):
            progress.epoch = epoch
            progress.history.append({"epoch": epoch, "train_loss": 0.0, "val_loss": float(epoch)})
            reporter.on_epoch(progress)
        progress.best_epoch = best
        reporter.finish(progress, Path("model.pt"))
    console.err.cache_clear()
    return [line.strip() for line in capsys.readouterr().err.splitlines()]


def test_a_short_run_prints_every_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(3, 3, 2, capsys) == ["epoch 1  val_loss 1", "epoch 2  val_loss 2", "epoch 3  val_loss 3"]


@pytest.mark.parametrize("epochs", [17, 100, 400, 401, 10_000])
def test_a_long_run_prints_at_most_twenty_lines(epochs: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(epochs, epochs, 7, capsys)
    assert 9 <= len(lines) <= 20
    assert lines[0] == "epoch 1  val_loss 1"
    assert lines[-2].startswith(f"epoch {epochs} ")
    assert lines[-1] == "best: epoch 7  val_loss 7"


def test_the_epoch_in_which_a_run_stops_early_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(400, 60, 41, capsys)[-2:] == ["epoch 60  val_loss 60", "best: epoch 41  val_loss 41"]
    assert printed(400, 50, 41, capsys)[-2:] == ["epoch 50  val_loss 50", "best: epoch 41  val_loss 41"]


def test_a_resumed_run_prints_the_epoch_in_which_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(400, 330, 41, capsys, first=303)[0] == "epoch 303  val_loss 303"
