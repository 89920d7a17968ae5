"""A regression that learns the logarithm or the root of its target answers in the target's own unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from headrace.data.splits import Splits
from headrace.errors import DataError, RecipeError
from headrace.models.interval import IntervalRegressor
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import fitted, make_model, make_recipe

PRICES = pd.DataFrame({"a": np.arange(50.0), "y": np.exp(np.arange(50.0) / 5)})
FUNCTIONS: dict[str, Any] = {"log": np.log, "log1p": np.log1p, "sqrt": np.sqrt}


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("interval", [None, 0.8])
def test_the_graph_answers_in_the_targets_unit(name: str, interval: float | None, tmp_path: Path) -> None:
    recipe = make_recipe("regression", {"name": "mlp", "interval": interval}, target_transform=name)
    schema = fitted(PRICES, recipe)
    learned = FUNCTIONS[name](PRICES["y"])
    assert (schema.target_mean, schema.target_std) == pytest.approx((learned.mean(), learned.std(ddof=0)))
    task_type, model = task_type_of(recipe.task), make_model(recipe, schema)
    contract = task_type.contract(schema, recipe, PRICES.iloc[:1])
    found = task_type.export(model, schema, recipe, contract, PRICES, tmp_path)
    assert found["largest_relative_difference"] <= found["tolerance"]
    target = torch.from_numpy(task_type.targets(PRICES, schema, recipe))
    width = 1 if interval is None else 3
    raw = model.standardised(target).unsqueeze(1).expand(-1, width)  # type: ignore[operator]
    answers = model.answer(raw).reshape(50, -1)
    np.testing.assert_allclose(answers[:, 0], PRICES["y"], rtol=1e-4)
    assert float(model.loss(raw, target)) == pytest.approx(0.0, abs=1e-9)


def test_intervals_are_calibrated_on_the_transformed_scale_and_stay_in_order() -> None:
    recipe = make_recipe("regression", {"name": "mlp", "interval": 0.8}, target_transform="log")
    model = make_model(recipe, fitted(PRICES, recipe))
    assert isinstance(model, IntervalRegressor)
    target = torch.from_numpy(PRICES["y"].to_numpy(np.float32))
    raw = torch.zeros(50, 3)
    model.calibrate(raw, target, None)
    value, low, high = model.answer(raw).unbind(1)
    assert float(((low <= target) & (target <= high)).float().mean()) >= 0.8
    assert (low <= value).all() and (value <= high).all() and (low > 0).all()


@pytest.mark.parametrize(
    ("name", "values", "hint"),
    [("log", [0.0, 1.0, 2.0], "log1p"), ("log", [-5.0, 1.0, 2.0], "remove"), ("sqrt", [-1.0, 4.0, 1.0], "remove")],
)
@pytest.mark.parametrize("part", ["training", "test"])
def test_a_target_without_a_logarithm_is_named_before_training(name: str, values: list[float], hint: str, part: str) -> None:
    recipe = make_recipe("regression", target_transform=name)
    odd, fine = pd.DataFrame({"a": [1.0, 2.0, 3.0], "y": values}), PRICES
    train, test = (odd, fine) if part == "training" else (fine, odd)
    with pytest.raises(DataError, match=f"1 rows have no {name}, for example") as caught:
        task_type_of(recipe.task).learn(Splits(train, fine, test, fine.iloc[:0]), recipe)
    assert caught.value.hint and hint in caught.value.hint


def test_only_a_regression_transforms_its_target() -> None:
    with pytest.raises(RecipeError, match=r"data\.target_transform: applies to regression only"):
        make_recipe(target_transform="log")
