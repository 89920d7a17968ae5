"""Temperatures and margins, compared with numbers computed by hand, and with what they promise on new rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from headrace.errors import TrainingError
from headrace.models.calibration import conformal_margin, fit_temperature
from headrace.models.interval import IntervalRegressor
from headrace.models.schema import Numeric, Schema, Shape
from headrace.models.served import AsIs, Classifier
from headrace.recipe.models import MLPConfig
from headrace.recipe.training import TrainConfig
from headrace.task_types.lookup import task_type_of
from headrace.training.results import calibrate
from headrace.training.rows import Split


def drawn(rows: int, seed: int, sharpness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn by the probabilities that they give; the logits come back `sharpness` times too large."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 4, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * sharpness, labels


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_is_how_much_too_sure_the_logits_are(sharpness: float) -> None:
    assert fit_temperature(*drawn(20_000, 0, sharpness)) == pytest.approx(sharpness, rel=0.05)


def test_the_temperature_has_the_lowest_loss_there_is() -> None:
    logits, labels = drawn(500, 1, 2.0)
    found = fit_temperature(logits, labels)
    losses = [float(F.cross_entropy(logits.double() / (found * step), labels)) for step in (0.99, 1.0, 1.01)]
    assert losses[1] == min(losses)


def test_logits_that_are_always_right_or_always_wrong_end_at_a_bound() -> None:
    right = torch.eye(3) * 5
    assert 0.0099 < fit_temperature(right, torch.arange(3)) < 0.1
    assert fit_temperature(right, (torch.arange(3) + 1) % 3) == pytest.approx(100, rel=0.01)


def test_a_temperature_makes_probabilities_honest_and_leaves_labels_alone() -> None:
    model = Classifier(AsIs(), torch.nn.Identity())
    logits, labels = drawn(4000, 2, 3.0)
    before = model(logits)
    found = calibrate(model, Split((logits,), labels), TrainConfig(calibrate="temperature"))
    assert found["temperature"] == pytest.approx(3.0, rel=0.1) == model.describe()["temperature"]
    assert found["val_calibration_error"] < 0.02 < 0.1 < found["val_calibration_error_before"]
    fresh, truth = drawn(4000, 3, 3.0)
    assert torch.equal(model(logits).argmax(1), before.argmax(1))
    top = model(fresh).max(1)
    assert float(top.values.mean()) == pytest.approx(float((top.indices == truth).float().mean()), abs=0.02)


def test_nothing_is_fitted_unless_the_recipe_asks() -> None:
    model = Classifier(AsIs(), torch.nn.Identity())
    assert calibrate(model, Split(drawn(10, 0)[:1], drawn(10, 0)[1]), TrainConfig()) == {}
    assert model.describe() == {} and float(model.temperature) == 1.0


def test_a_temperature_of_a_regression_is_refused() -> None:
    schema = Schema(shape=Shape(numeric=1, outputs=1), numeric=[Numeric(name="a", mean=0, std=1, nullable=False)])
    model = task_type_of("regression").module(MLPConfig(hidden=[]), schema)
    with pytest.raises(TrainingError, match="needs probabilities") as caught:
        calibrate(model, Split((torch.zeros(2, 1),), torch.zeros(2)), TrainConfig(calibrate="temperature"))
    assert caught.value.hint


# Intervals.


def test_the_margin_is_the_quantile_of_how_far_targets_lie_outside() -> None:
    lower, upper = torch.zeros(9), torch.ones(9)
    target = torch.tensor([0.5, 0.4, 0.2, 1.1, 1.2, -0.3, 1.4, 1.5, 2.0])
    # outside by: -0.5, -0.4, -0.2, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0; of 9 rows the (9 + 1) * 0.8 = 8th decides
    assert conformal_margin(lower, upper, target, 0.8) == pytest.approx(0.5)
    assert conformal_margin(lower, upper, target, 0.1) == pytest.approx(-0.5)
    assert conformal_margin(lower, upper, target, 0.99) == pytest.approx(1.0)  # too few rows: the farthest


def interval_model(level: float = 0.8, network: torch.nn.Module | None = None) -> IntervalRegressor:
    return IntervalRegressor(AsIs(), network or torch.nn.Identity(), mean=100.0, std=20.0, level=level)


@pytest.mark.parametrize(("rows", "said"), [(18, True), (19, False)])
def test_too_few_rows_for_an_interval_are_reported(rows: int, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    model = interval_model(0.95, torch.nn.Linear(1, 3))
    found = calibrate(model, Split((torch.zeros(rows, 1),), torch.linspace(50, 150, rows)), TrainConfig())
    message = "18 validation rows are too few for model.interval: only 0.9474 of similar rows are sure to be inside"
    assert (message in "".join(capsys.readouterr())) is said
    assert found.get("interval_level_reached") == (pytest.approx(18 / 19) if said else None)


def test_an_interval_model_answers_value_and_bounds_in_the_targets_unit() -> None:
    model = interval_model()
    raw = torch.tensor([[-1.0, 0.0, 2.0], [0.5, 0.0, -0.5]])  # the second row's quantiles cross
    assert model.answer(raw).tolist() == [[100.0, 80.0, 140.0], [100.0, 100.0, 100.0]]
    model.margin.fill_(3.0)
    assert model.answer(raw).tolist() == [[100.0, 77.0, 143.0], [100.0, 97.0, 103.0]]
    model.margin.fill_(-30.0)
    assert model.answer(raw)[0].tolist() == [100.0, 100.0, 110.0]


def test_the_loss_is_the_pinball_loss_worked_by_hand() -> None:
    raw, target = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), torch.tensor([140.0, 80.0])
    # first row, truth 2: below by 3, 2, 1; second, truth -1: above by 1 each
    first = 0.1 * 3 + 2 * 0.5 * 2 + 0.9 * 1
    second = 0.9 * 1 + 2 * 0.5 * 1 + 0.1 * 1
    assert float(interval_model().loss(raw, target)) == pytest.approx((first + second) / 2)
    assert float(interval_model().metric(raw, target)) == pytest.approx((40 + 20) / 2)


@pytest.mark.parametrize("bounds", [(-0.1, 0.1), (-9.0, 9.0)])
def test_an_interval_holds_its_level_however_badly_the_quantiles_were_learned(bounds: tuple[float, float]) -> None:
    """The promise of conformal prediction, on rows like the validation rows."""
    network = torch.nn.Linear(1, 3)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([bounds[0], 0.0, bounds[1]]))
    model = interval_model(0.9, network)
    generator = torch.Generator().manual_seed(0)
    validation, fresh = (100 + 20 * torch.randn(4000, generator=generator) for _ in range(2))
    found = calibrate(model, Split((torch.zeros(4000, 1),), validation), TrainConfig())
    assert abs(found["val_coverage_before"] - 0.9) > 0.05
    _, low, high = model(torch.zeros(4000, 1)).unbind(1)
    assert float(((low <= fresh) & (fresh <= high)).float().mean()) == pytest.approx(0.9, abs=0.015)


def test_a_regression_with_an_interval_learns_its_quantiles() -> None:
    """Noise that grows with x: the interval grows with it, and the value is the median of a skewed truth."""
    schema = Schema(
        shape=Shape(numeric=1, outputs=1),
        numeric=[Numeric(name="x", mean=0.0, std=1.0, nullable=False)],
        target_mean=0.0,
        target_std=1.0,
    )
    torch.manual_seed(0)
    model = task_type_of("regression").module(MLPConfig(hidden=[16], interval=0.8), schema)
    x = torch.rand(2000, 1)
    y = x[:, 0] * torch.distributions.Exponential(1.0).sample((2000,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        loss = model.loss(model.raw(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    value, low, high = model(torch.tensor([[1.0]]))[0].tolist()
    assert value == pytest.approx(math.log(2), abs=0.15)
    assert low == pytest.approx(-math.log(0.9), abs=0.1) and high == pytest.approx(-math.log(0.1), abs=0.4)
    _, nearer, farther = model(torch.tensor([[0.1]]))[0].tolist()
    assert farther - nearer < 0.3 * (high - low)


def test_the_calibration_is_stored_with_the_weights() -> None:
    made, other = interval_model(), interval_model()
    made.margin.fill_(3.0)
    other.load_state_dict(made.state_dict())
    assert np.array_equal(made(torch.zeros(1, 3)).numpy(), other(torch.zeros(1, 3)).numpy())
