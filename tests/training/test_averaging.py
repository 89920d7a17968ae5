"""Averages of weights against hand-worked numbers and torch's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from headrace.recipe.training import TrainConfig
from headrace.training.averaging import EpochMean, MovingAverage, make_average
from headrace.training.checkpoint import Progress
from headrace.training.loop import evaluate
from tests.training.toys import image_model, image_rows, largest_difference, table_model, table_rows, train, weights

BATCH = 16


def fill(model: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def averaged(average: Any, model: torch.nn.Module) -> float:
    with average.in_place(table_rows(4), BATCH):
        values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert values.min() == values.max()
    return float(values[0])


def test_a_moving_average_is_the_one_worked_out_by_hand() -> None:
    model = table_model()
    fill(model, 0.0)
    average = MovingAverage(model, decay=0.5)
    wanted = 0.0
    for value, kept in ((1.0, 1 / 10), (2.0, 2 / 11), (-3.0, 3 / 12), (4.0, 4 / 13), (5.0, 5 / 14)):
        fill(model, value)
        average.after_step()
        wanted = kept * wanted + (1 - kept) * value
        assert averaged(average, model) == pytest.approx(wanted, rel=1e-6)
    for _ in range(20):  # by now the ramp is above the decay
        average.after_step()
    before = averaged(average, model)
    fill(model, 7.0)
    average.after_step()
    assert averaged(average, model) == pytest.approx(0.5 * before + 0.5 * 7.0)


def test_the_mean_of_the_last_epochs_is_torchs() -> None:
    model = table_model()
    average = EpochMean(model, start=0.5, epochs=6)
    torchs = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
    firsts = []
    for epoch in range(1, 7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(epoch)))
        firsts.append(average.after_epoch(epoch))
        if epoch >= 4:
            torchs.update_parameters(model)
    assert firsts == [False, False, False, True, False, False]
    with average.in_place(table_rows(4), BATCH):
        assert largest_difference(weights(model), weights(torchs.module)) < 1e-6


def test_weights_that_train_come_back_untouched() -> None:
    model = table_model()
    average = MovingAverage(model, decay=0.9)
    fill(model, 3.0)
    average.after_step()
    before = weights(model)
    with pytest.raises(RuntimeError, match="stop"), average.in_place(table_rows(4), BATCH):
        assert largest_difference(before, weights(model)) > 0
        raise RuntimeError("stop")
    assert largest_difference(before, weights(model)) == 0


@pytest.mark.parametrize("averaging", [{"decay": 0.9}, {"method": "swa", "start": 0.5}], ids=["ema", "swa"])
def test_what_a_run_leaves_are_the_averaged_weights_that_were_evaluated(averaging: dict[str, Any], tmp_path: Path) -> None:
    model, rows = table_model(), table_rows(100)
    config = TrainConfig.model_validate({"epochs": 6, "batch_size": BATCH, "learning_rate": 0.05, "averaging": averaging})
    training: list[dict[str, Tensor]] = []
    progress = train(model, rows, config, tmp_path, on_epoch=lambda progress: training.append(weights(model)))
    assert evaluate(model, rows)[0] == progress.best_val_loss == progress.history[progress.best_epoch - 1]["val_loss"]
    assert all(largest_difference(weights(model), epoch) > 1e-6 for epoch in training[3:-1])
    if "start" in averaging:
        wanted = {
            name: torch.stack([epoch[name] for epoch in training[3 : progress.best_epoch]]).mean(0) for name in training[0]
        }
        assert progress.best_epoch >= 4
        assert largest_difference(weights(model), wanted) < 1e-6


def test_an_earlier_epoch_does_not_win_over_the_mean_of_the_last(tmp_path: Path) -> None:
    """With a rate that spoils everything after the first epoch, the mean is still what was asked for."""
    fields = {"epochs": 4, "batch_size": 5, "optimizer": "sgd", "learning_rate": 3.0, "schedule": "constant"}
    config = TrainConfig.model_validate({**fields, "averaging": {"method": "swa", "start": 0.5}})
    progress: Progress = train(table_model(), table_rows(100), config, tmp_path)
    assert progress.best_epoch >= 3


def test_statistics_of_batch_norm_are_computed_for_the_mean() -> None:
    model, rows = image_model(batch_norm=True), image_rows(40)
    average = EpochMean(model, start=0.0, epochs=3)
    for epoch in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(epoch)))
        average.after_epoch(epoch)
    (norm,) = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    (convolution,) = [part for part in model.modules() if isinstance(part, torch.nn.Conv2d)]
    kept = norm.running_mean.clone()
    with average.in_place(rows, 40), torch.no_grad():
        seen = convolution(*model.preprocess(*rows.inputs))
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert torch.equal(norm.running_mean, kept)


def test_without_averaging_nothing_is_kept() -> None:
    assert make_average(table_model(), TrainConfig()).state_dict() == {}


def test_the_mean_of_the_last_epochs_does_not_go_with_early_stopping() -> None:
    with pytest.raises(ValidationError, match="remove early_stopping"):
        TrainConfig.model_validate({"averaging": {"method": "swa"}, "early_stopping": {"patience": 2}})
