"""Schedules against torch's own schedulers, step by step."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from headrace.recipe.training import TrainConfig
from headrace.training.optimizers import ScheduledOptimizer
from headrace.training.schedules import make_schedule
from tests.training.toys import table_model

PEAK = 0.3


def rates_of(scheduler: LRScheduler, optimizer: SGD, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def optimizer() -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def ours(config: TrainConfig, steps: int) -> list[float]:
    schedule = make_schedule(config, steps)
    return [PEAK * schedule(done) for done in range(steps)]


@pytest.mark.parametrize("steps", [10, 100, 333])
@pytest.mark.parametrize("warmup", [None, 0.2, 0.5])
def test_one_cycle_is_torchs(steps: int, warmup: float | None) -> None:
    made = optimizer()
    torchs = OneCycleLR(made, max_lr=PEAK, total_steps=steps, pct_start=warmup or 0.3, cycle_momentum=False)
    wanted = rates_of(torchs, made, steps - 1)
    found = ours(TrainConfig(schedule="one_cycle", warmup=warmup), steps)
    assert found[: steps - 1] == pytest.approx(wanted, rel=1e-6)
    assert found[-1] == pytest.approx(PEAK / 25 / 10_000)


@pytest.mark.parametrize("steps", [10, 100])
@pytest.mark.parametrize("rising", [0, 3])
def test_cosine_is_torchs_after_a_straight_rise(steps: int, rising: int) -> None:
    made = optimizer()
    down = CosineAnnealingLR(made, T_max=steps - rising)
    if rising:
        up = LinearLR(made, start_factor=1 / (rising + 1), total_iters=rising)
        wanted = rates_of(SequentialLR(made, [up, down], milestones=[rising]), made, steps)
    else:
        wanted = rates_of(down, made, steps)
    assert ours(TrainConfig(schedule="cosine", warmup=rising / steps), steps) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_constant_rises_and_stays() -> None:
    assert ours(TrainConfig(schedule="constant"), 5) == [PEAK] * 5
    wanted = [PEAK * share for share in (0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1)]
    assert ours(TrainConfig(schedule="constant", warmup=0.4), 10) == pytest.approx(wanted)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [None, 0.0, 0.3, 0.99])
def test_the_shortest_runs_have_a_rate_above_zero_and_never_above_the_peak(
    schedule: str, warmup: float | None, steps: int
) -> None:
    config = TrainConfig.model_validate({"schedule": schedule, "warmup": warmup})
    found = ours(config, steps)
    assert all(0 < rate <= PEAK for rate in found[:1]) and all(0 <= rate <= PEAK for rate in found)


def test_an_update_takes_the_rate_of_its_step() -> None:
    model = table_model()
    config = TrainConfig(schedule="one_cycle", optimizer="sgd", learning_rate=PEAK)
    optimizer = ScheduledOptimizer(model, config, steps=10)
    taken = []
    for _ in range(10):
        optimizer.set_learning_rate()
        optimizer.step()
        taken.append(optimizer.optimizers[0].param_groups[0]["lr"])
    assert taken == ours(config, 10)
