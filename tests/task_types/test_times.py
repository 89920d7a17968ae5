"""Columns of times: their features are computed in the graph, from the texts that clients send."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from headrace.errors import DataError, RecipeError
from headrace.models.time_features import calendar_parts
from headrace.pipeline.export import load_weights
from headrace.runtime.violations import ContractViolation
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import fitted, make_model, make_recipe
from tests.exhaustive import exhaustive


def test_calendar_parts_are_those_of_pythons_calendar() -> None:
    rng = np.random.default_rng(0)
    moments = [datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59), datetime(2000, 2, 29), datetime(1900, 3, 1)]
    moments += [datetime(1900, 1, 1) + timedelta(seconds=int(s)) for s in rng.integers(0, 250 * 365 * 86_400, 5_000)]
    seconds = torch.tensor([(m - datetime(1970, 1, 1)).total_seconds() for m in moments], dtype=torch.float64)
    found = {name: values.tolist() for name, values in calendar_parts(seconds).items()}
    assert found["year"] == [m.year for m in moments]
    assert found["month"] == [m.month - 1 for m in moments]
    assert found["day"] == [m.day - 1 for m in moments]
    assert found["weekday"] == [m.weekday() for m in moments]
    assert found["hour"] == pytest.approx([m.hour + m.minute / 60 + m.second / 3600 for m in moments])


def dated(rows: int = 40) -> pd.DataFrame:
    days = pd.date_range("2023-01-01 06:30", periods=rows, freq="31h")
    frame = pd.DataFrame({"day": days, "joined": days - pd.to_timedelta(np.arange(rows) % 7, "D"), "n": np.arange(rows) * 1.0})
    frame.loc[3, "joined"] = pd.NaT
    return frame.assign(y=["no", "yes"] * (rows // 2), kind=["a", "b"] * (rows // 2))


TIMES = {"day": {"format": "%d/%m/%Y %H:%M", "features": ["year", "month", "day", "weekday", "hour"]}, "joined": None}


@pytest.mark.parametrize(
    "columns", [["day", "joined", "y"], exhaustive(["day", "joined", "n", "y"]), ["day", "joined", "n", "kind", "y"]]
)
def test_the_graph_answers_like_torch_whatever_stands_beside_the_times(columns: list[str], tmp_path: Path) -> None:
    recipe = make_recipe(times={**TIMES, "joined": {"since": "day", "features": ["elapsed"]}}, columns=columns)
    frame = dated()[columns]
    task_type, schema = task_type_of(recipe.task), fitted(frame, recipe)
    assert schema.shape.numeric == 1 + 8 + 1 + ("n" in columns)
    contract = task_type.contract(schema, recipe, frame.iloc[:1])
    assert contract.sample["day"] == "01/01/2023 06:30"
    found = task_type.export(make_model(recipe, schema), schema, recipe, contract, frame, tmp_path)
    assert found["largest_relative_difference"] <= found["tolerance"]
    sent = [{**row, "day": row["day"].strftime("%d/%m/%Y %H:%M")} for row in frame.drop(columns="y").to_dict("records")]
    sent = [{k: (None if v is pd.NaT else v.isoformat() if hasattr(v, "isoformat") else v) for k, v in r.items()} for r in sent]
    feeds, wanted = contract.to_feeds(json.loads(json.dumps(sent))), task_type.feeds(frame, contract, recipe)
    assert all(np.array_equal(feeds[name], wanted[name], equal_nan=feeds[name].dtype != object) for name in wanted)


def test_elapsed_days_count_from_a_day_or_from_another_column() -> None:
    frame = pd.DataFrame(
        {"a": pd.to_datetime(["2020-01-11", "2020-01-21"]), "b": pd.to_datetime(["2020-01-01", "2020-01-20"]), "y": [0, 1]}
    )
    times: dict[str, Any] = {
        "a": {"features": ["elapsed"], "since": "b"},
        "b": {"features": ["elapsed"], "since": "2020-01-01"},
    }
    recipe = make_recipe(times=times)
    schema = fitted(frame, recipe)
    a, b = (column.scales["elapsed"] for column in schema.times)
    assert (a.mean, a.std) == pytest.approx((5.5, 4.5))  # 10 days and 1 day
    assert (b.mean, b.std) == pytest.approx((9.5, 9.5))  # 0 and 19 days
    preprocess = make_model(recipe, schema).preprocess
    inputs = task_type_of(recipe.task).encode(frame, schema, recipe)
    numbers, _ = preprocess(torch.from_numpy(inputs["times"]))
    assert numbers.tolist() == [[1.0, -1.0], [-1.0, 1.0]]


def test_a_cycle_ends_beside_its_beginning() -> None:
    frame = pd.DataFrame(
        {"t": pd.to_datetime(["2023-12-31 23:59", "2024-01-01 00:01", "2024-06-15 12:00"]), "y": ["a", "b", "a"]}
    )
    recipe = make_recipe(times={"t": {"features": ["hour", "weekday"]}})
    schema = fitted(frame, recipe)
    numbers, _ = make_model(recipe, schema).preprocess(torch.from_numpy(schema_times(frame)))
    late, early, noon = numbers[:, :2]
    assert math.dist(late, early) < 0.02 < 1.9 < math.dist(early, noon)


def schema_times(frame: pd.DataFrame) -> Any:
    return frame[["t"]].to_numpy().astype("datetime64[us]").astype("int64") / 1e6


def test_a_missing_time_is_refused_or_null_by_all_rows_not_by_the_split() -> None:
    from headrace.data.splits import Splits

    recipe, frame = make_recipe(times=["day", "joined"]), dated()
    with_gap = frame.iloc[:4]
    splits = Splits(frame.iloc[10:30], frame.iloc[30:], with_gap, frame.iloc[:0])
    schema = task_type_of(recipe.task).learn(splits, recipe)
    assert [column.nullable for column in schema.times] == [False, True]
    contract = task_type_of(recipe.task).contract(schema, recipe, frame.iloc[:1])
    row = contract.sample
    contract.to_feeds([{**row, "joined": None}])
    for wrong in (1_700_000_000, "yesterday", None, "2024-13-01", "20240131"):
        with pytest.raises(ContractViolation, match=r"instances\.0\.day: expected a time such as") as caught:
            contract.to_feeds([{**row, "day": wrong}])
        assert caught.value.path == "instances.0.day"
    with pytest.raises(ContractViolation, match=r"instances\.0\.day: expected a time such as .*, got nothing"):
        contract.to_feeds([{name: value for name, value in row.items() if name != "day"}])


def test_the_column_of_a_split_by_time_is_a_feature_only_where_the_recipe_names_its_parts() -> None:
    split = {"time": {"column": "day"}}
    assert make_recipe(times=["day"], split=split).data.features(["day", "n", "y"]) == ["n"]
    assert make_recipe(times={"day": {"features": ["weekday"]}}, split=split).data.features(["day", "n", "y"]) == ["day", "n"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"times": {"day": {"format": "%d/%m"}}}, r"data\.times\.day\.format: .*no year"),
        ({"times": {"day": {"format": "dd/mm/yyyy"}}}, r"data\.times\.day\.format: .*write for example %d/%m/%Y"),
        ({"times": {"day": {"since": "joined"}}}, "since: expected another column of data.times, or a day"),
        ({"times": {"day": {"features": ["decade"]}}}, r"data\.times\.day\.features"),
        ({"times": {"day": {"frmt": "%Y"}}}, r"unknown field; did you mean 'format'"),
        ({"times": ["day"], "columns": ["n", "y"]}, "times 'day' is not in columns"),
        ({"times": ["day"], "categorical": ["day"]}, "categorical has 'day' too"),
        ({"times": ["y"]}, "target has 'y' too"),
    ],
)
def test_mistakes_in_times_are_named_with_their_field(data: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe(**data)


def test_a_column_of_texts_that_was_not_read_as_times_names_the_format() -> None:
    with pytest.raises(DataError, match=r"'31\.12\.2024', which is not a time") as caught:
        fitted(pd.DataFrame({"day": ["31.12.2024", "01.01.2025"], "y": ["a", "b"]}), make_recipe(times=["day"]))
    assert caught.value.hint and "data.times.day.format" in caught.value.hint


def test_weights_of_a_model_with_times_come_back(tmp_path: Path) -> None:
    recipe, frame = make_recipe(times=["day", "joined"]), dated()
    schema = fitted(frame, recipe)
    torch.save(make_model(recipe, schema).state_dict(), tmp_path / "model.pt")
    load_weights(recipe, schema, tmp_path / "model.pt")
