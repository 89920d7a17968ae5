"""A regression with several quantiles: loss, order, and the share of new rows below each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from headrace.errors import RecipeError
from headrace.models.quantiles import QuantileRegressor
from headrace.models.served import AsIs
from headrace.recipe.recipe import parse_recipe
from headrace.recipe.training import TrainConfig
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.scoring.answers import answer_columns
from headrace.services.api.batch_rows import write_parquet
from headrace.services.api.batch_store import Part
from headrace.services.api.json_schemas import answer_schema
from headrace.training.results import calibrate
from headrace.training.rows import Split
from tests.bento_projects import make_recipe

LEVELS = [0.1, 0.5, 0.75]
CONTRACT = Contract(
    model="flats",
    task="regression",
    inputs=[InputField(name="x", dtype="float32")],
    output="value",
    quantiles=LEVELS,
    target="rent",
    sample={"x": 1.0},
)
ANSWER = {"rent": 12.5, "quantiles": {"0.1": 10.0, "0.5": 12.5, "0.75": 15.25}}


def quantile_model(network: torch.nn.Module | None = None) -> QuantileRegressor:
    return QuantileRegressor(AsIs(), network or torch.nn.Identity(), mean=100.0, std=20.0, quantiles=LEVELS)


def test_the_value_is_the_median_and_no_quantile_passes_its_neighbour() -> None:
    raw = torch.tensor([[-1.0, 0.0, 2.0], [0.5, 0.0, -0.5]])
    assert quantile_model().answer(raw).tolist() == [[100.0, 80.0, 100.0, 140.0], [100.0, 100.0, 100.0, 100.0]]


def test_the_loss_is_the_pinball_loss_worked_by_hand() -> None:
    raw, target = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), torch.tensor([140.0, 80.0])
    first = 0.1 * 3 + 0.5 * 2 + 0.75 * 1
    second = 0.9 * 1 + 0.5 * 1 + 0.25 * 1
    assert float(quantile_model().loss(raw, target)) == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("bias", [[-0.1, 0.0, 0.1], [-9.0, 1.0, 9.0]])
def test_each_quantile_has_its_share_of_new_rows_below_however_badly_it_was_learned(bias: list[float]) -> None:
    """The promise of conformal prediction, on rows like the validation rows."""
    network = torch.nn.Linear(1, 3)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor(bias))
    model = quantile_model(network)
    generator = torch.Generator().manual_seed(0)
    validation, fresh = (100 + 20 * torch.randn(4000, generator=generator) for _ in range(2))
    calibrate(model, Split((torch.zeros(4000, 1),), validation), TrainConfig())
    found = model(torch.zeros(4000, 1))[:, 1:]
    shares = (fresh.unsqueeze(1) <= found).float().mean(0)
    assert shares.tolist() == pytest.approx(LEVELS, abs=0.02)


def test_answers_name_each_quantile_in_every_form(tmp_path: Path) -> None:
    assert CONTRACT.to_answers(np.array([[12.5, 10, 12.5, 15.25]], np.float32)) == [ANSWER]
    jsonschema.validate(ANSWER, answer_schema(CONTRACT))
    assert "quantiles" not in CONTRACT.model_copy(update={"quantiles": None}).model_dump()  # older models keep their bytes
    line = {"row": 0, "prediction": ANSWER, "error": None, "id": "a", "id_row": 0}
    (tmp_path / "part").write_text(json.dumps(line))
    write_parquet([Part(0, 1, 0, tmp_path / "part")], CONTRACT, tmp_path / "result.parquet")
    (row,) = pq.read_table(tmp_path / "result.parquet").to_pylist()
    assert row["rent"] == 12.5 and dict(row["quantiles"]) == ANSWER["quantiles"]
    values = {column.name: column.value(line) for column in answer_columns(CONTRACT)}
    assert (values["prediction"], values["prediction_0.1"], values["prediction_0.75"]) == (12.5, 10.0, 15.25)


@pytest.mark.parametrize(
    ("model", "target", "said"),
    [
        ({"quantiles": [0.5, 0.1]}, "y", "in order"),
        ({"quantiles": [0.1, 0.9]}, "y", "0.5 has to be among them"),
        ({"quantiles": [0.1, 0.5], "interval": 0.9}, "y", "remove one of them"),
        ({"quantiles": [0.5, 1.5]}, "y", "less than 1"),
        ({"quantiles": [0.1, 0.5]}, "quantiles", "predictions hold their quantiles"),
    ],
)
def test_quantiles_that_do_not_fit_are_refused(model: dict[str, Any], target: str, said: str) -> None:
    fields = make_recipe("regression").model_dump(mode="json")
    fields["model"], fields["data"]["target"] = {"name": "mlp", **model}, target
    with pytest.raises(RecipeError, match=said):
        parse_recipe(yaml.safe_dump(fields), "recipes/toy.yaml")
