"""The training loop on toys: that it learns, stops, resumes bit for bit, and reports why it cannot continue."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.errors import TrainingError
from headrace.models.schema import Numeric, Schema, Shape
from headrace.models.served import ServedModel
from headrace.recipe.models import MLPConfig
from headrace.recipe.training import TrainConfig
from headrace.task_types.lookup import task_type_of
from headrace.training import loop
from headrace.training.checkpoint import Progress
from headrace.training.device import choose_device, choose_precision, generator, seed_everything
from headrace.training.loop import TrainingRun, evaluate, fit
from headrace.training.rows import Split
from tests.training.toys import Callbacks, ignore

NUMBERS = [Numeric(name=name, mean=0.0, std=1.0, nullable=False) for name in "ab"]


class Killed(Exception):
    """Raised in place of the end of the process."""


def kill_in(epoch: int) -> Callable[[Progress], None]:
    """Ends the run in `epoch`, when its weights are made and its checkpoint is not yet written."""

    def on_epoch(progress: Progress) -> None:
        if progress.epoch == epoch:
            raise Killed

    return on_epoch


def model(seed: int = 0, dropout: float = 0.3, hidden: int = 8) -> ServedModel:
    seed_everything(seed)
    schema = Schema(shape=Shape(numeric=2, outputs=2), numeric=NUMBERS, labels=["no", "yes"])
    return task_type_of("classification").module(MLPConfig(hidden=[hidden], dropout=dropout), schema)


def rows(n: int, seed: int = 1, noise: float = 0.0) -> Split:
    """Two classes on either side of a line, some labelled wrongly."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator)
    wrong = torch.rand(n, generator=generator) < noise
    return Split((x,), ((x.sum(1) > 0) ^ wrong).long())


def train(
    config: TrainConfig,
    folder: Path,
    made: ServedModel | None = None,
    fingerprint: str = "run",
    on_epoch: Callable[[Progress], None] = ignore,
    n: int = 100,
) -> tuple[ServedModel, Progress]:
    found = made or model(config.seed)
    run = TrainingRun(folder / "checkpoint.pt", fingerprint, Callbacks(on_epoch))
    progress = fit(found, rows(n), rows(40, seed=2, noise=0.2), config, run)
    return found, progress


def same(one: ServedModel, other: ServedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop", "muon"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_the_loss_falls_on_a_separable_toy(optimizer: Any, schedule: Any, tmp_path: Path) -> None:
    config = TrainConfig(epochs=10, batch_size=16, optimizer=optimizer, schedule=schedule, learning_rate=0.05)
    made, clean = model(dropout=0.0), rows(100)
    before = evaluate(made, clean)[0]
    progress = fit(made, clean, clean, config, TrainingRun(tmp_path / "c.pt", "run"))
    assert progress.history[-1]["train_loss"] < before / 3
    assert evaluate(made, rows(200, seed=3))[1] > 0.9


def test_evaluation_is_the_mean_over_all_rows_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made, split = model(), rows(10)
    made.eval()
    with torch.no_grad():
        probability = made(*split.inputs)[range(10), split.target]
        right = (made(*split.inputs).argmax(1) == split.target).float().mean()
    wanted = (float(-probability.log().mean()), float(right))
    assert evaluate(made, split) == pytest.approx(wanted)
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 3)
    assert evaluate(made, split) == pytest.approx(wanted)


def test_a_regression_is_evaluated_by_its_absolute_error() -> None:
    schema = Schema(shape=Shape(numeric=2, outputs=1), numeric=NUMBERS, target_mean=100.0, target_std=10.0)
    made = task_type_of("regression").module(MLPConfig(hidden=[]), schema)
    for parameter in made.parameters():
        torch.nn.init.zeros_(parameter)  # so that every answer is the mean, 100
    loss, mae = evaluate(made, Split((torch.zeros(2, 2),), torch.tensor([105.0, 130.0])))
    assert mae == pytest.approx(17.5)
    assert loss == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2)


def test_every_row_is_taken_once_an_epoch_in_a_new_order() -> None:
    split = Split((torch.arange(10) * 10,), torch.arange(10))
    first, again, second = (list(split.batches(3, generator(7, "order", epoch))) for epoch in (0, 0, 1))
    assert [len(target) for _, target in first] == [3, 3, 3, 1]
    order, same_order, other_order = (torch.cat([target for _, target in epoch]).tolist() for epoch in (first, again, second))
    assert sorted(order) == sorted(other_order) == list(range(10))
    assert order == same_order != other_order
    assert all(torch.equal(inputs[0], target * 10) for inputs, target in first)
    assert [t.tolist() for _, t in split.batches(3, generator(7, "order", 0), first=2)] == [t.tolist() for _, t in first[2:]]


def test_the_training_loss_weighs_each_row_alike(tmp_path: Path) -> None:
    """With a step too small to move anything, it is the mean over the rows: a last batch of one row counts as one row."""
    made, split = model(dropout=0.0), rows(33)
    wanted, _ = evaluate(made, split)
    config = TrainConfig(epochs=1, batch_size=32, learning_rate=1e-12, optimizer="adam", weight_decay=0.0)
    progress = fit(made, split, split, config, TrainingRun(tmp_path / "c.pt", "run"))
    assert progress.history[0]["train_loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(5, 128, 1), (33, 32, 2), (1, 1, 1)])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_batches_of_any_size_make_their_steps(n: int, batch_size: int, steps: int, schedule: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = TrainConfig(epochs=1, batch_size=batch_size, schedule=schedule)
    reporter = Callbacks(on_step=lambda epoch, step: seen.append((epoch, step)))
    fit(model(), rows(n), rows(4), config, TrainingRun(tmp_path / "c.pt", "run", reporter))
    assert seen == [(1, step + 1) for step in range(steps)]


def test_early_stopping_keeps_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    kept: dict[int, ServedModel] = {}
    made = model(dropout=0.0, hidden=64)
    fields = {"epochs": 200, "batch_size": 8, "learning_rate": 0.05, "schedule": "constant", "early_stopping": {"patience": 3}}
    config = TrainConfig.model_validate(fields)
    _, progress = train(config, tmp_path, made, on_epoch=lambda p: kept.update({p.epoch: copy.deepcopy(made)}), n=60)
    losses = [row["val_loss"] for row in progress.history]
    best = losses.index(min(losses)) + 1
    assert progress.best_epoch == best
    assert progress.epoch == best + 3 < 200
    assert same(made, kept[best]) and not same(made, kept[progress.epoch])


def test_the_best_epoch_is_kept_without_early_stopping_too(tmp_path: Path) -> None:
    made, progress = train(TrainConfig(epochs=25, batch_size=8, learning_rate=0.1, schedule="constant"), tmp_path, n=60)
    assert progress.best_epoch < progress.epoch == 25
    assert (
        evaluate(made, rows(40, seed=2, noise=0.2))[0] == progress.best_val_loss == min(r["val_loss"] for r in progress.history)
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_a_run_killed_in_any_epoch_ends_as_one_never_killed(epoch: int, optimizer: Any, tmp_path: Path) -> None:
    config = TrainConfig(epochs=5, batch_size=16, learning_rate=0.05, optimizer=optimizer)
    whole, wanted = train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "cut", on_epoch=kill_in(epoch))
    fresh = model(seed=99 if epoch > 1 else config.seed)  # the checkpoint replaces the initial weights
    torch.rand(17 if epoch > 1 else 0)
    resumed: list[int] = []
    cut, found = train(config, tmp_path / "cut", fresh, on_epoch=lambda p: resumed.append(p.epoch))
    assert resumed == list(range(epoch, 6))
    assert same(whole, cut)
    assert (found.history, found.best_epoch) == (wanted.history, wanted.best_epoch)


def test_a_run_killed_after_its_last_checkpoint_needs_no_further_epoch(tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, batch_size=16)
    first, wanted = train(config, tmp_path)
    second, found = train(config, tmp_path, model(seed=99), on_epoch=kill_in(3))
    assert same(first, second) and found.history == wanted.history


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, batch_size=16)
    with pytest.raises(Killed):
        train(config, tmp_path, model(seed=5), fingerprint="other", on_epoch=kill_in(2))
    alone, _ = train(config, tmp_path / "alone")
    made, progress = train(config, tmp_path)
    assert progress.epoch == len(progress.history) == 2
    assert same(made, alone)


def _saved(path: Path, value: Any) -> None:
    torch.save(value, path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x00" * 5000),
        lambda path: path.write_bytes(bytes(b ^ 255 if i % 97 == 0 else b for i, b in enumerate(path.read_bytes()))),
        lambda path: _saved(path, torch.zeros(3)),
        lambda path: _saved(path, {"weights": torch.zeros(3)}),
        lambda path: _saved(path, Path("an object that only pickle could make")),
    ],
    ids=["cut", "empty", "zeros", "flipped bits", "a tensor", "another dict", "a pickled object"],
)
def test_a_damaged_checkpoint_is_not_used(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, batch_size=16)
    with pytest.raises(Killed):
        train(config, tmp_path, on_epoch=kill_in(2))
    spoil(tmp_path / "checkpoint.pt")
    alone, _ = train(config, tmp_path / "alone")
    assert same(train(config, tmp_path)[0], alone)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    one, again, other = (
        train(TrainConfig(epochs=2, batch_size=16, seed=s), tmp_path / n)[0] for n, s in (("a", 3), ("b", 3), ("c", 4))
    )
    assert same(one, again) and not same(one, other)


def test_a_loss_that_is_not_finite_names_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="loss became") as caught:
        train(TrainConfig(epochs=3, batch_size=16, learning_rate=1e30, optimizer="sgd"), tmp_path)
    assert re.search(r"in epoch \d, (batch \d|on the validation rows)", caught.value.message)
    assert "train.learning_rate" in str(caught.value.hint) and "1e+30" in str(caught.value.hint)
    assert "train.max_grad_norm" in str(caught.value.hint)
    checkpoint = tmp_path / "checkpoint.pt"
    assert not checkpoint.exists() or torch.load(checkpoint, weights_only=True)["progress"]["epoch"] < 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no CUDA GPU") as caught:
        choose_device("cuda")
    assert "`auto`" in str(caught.value.hint)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_in_mixed_precision_and_answers_in_full(tmp_path: Path) -> None:
    device = choose_device("auto")
    assert device.type == "cuda"
    assert choose_precision("auto", device) in (torch.bfloat16, torch.float32)
    made = model(dropout=0.0).to(device)
    split = Split(tuple(x.to(device) for x in rows(200).inputs), rows(200).target.to(device))
    progress = fit(made, split, split, TrainConfig(epochs=5, learning_rate=0.05), TrainingRun(tmp_path / "c.pt", "run"))
    assert progress.history[-1]["val_loss"] < progress.history[0]["val_loss"]
    with torch.inference_mode():
        assert made(*split.inputs).dtype == torch.float32
