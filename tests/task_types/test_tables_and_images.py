"""Kinds: what is learned from the training rows, how rows become tensors, and that clients' rows become the same ones."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from headrace.errors import DataError, RecipeError
from headrace.models.schema import Schema
from headrace.recipe.recipe import Recipe, parse_recipe
from headrace.runtime.contract import Contract, Feeds
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import fitted, make_recipe, through_parquet


def labelled(**columns: Any) -> pd.DataFrame:
    """The columns, and a target `y` of two classes in turn."""
    rows = len(next(iter(columns.values())))
    return pd.DataFrame({**columns, "y": ["no", "yes"] * (rows // 2) + ["no"] * (rows % 2)})


def encoded(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, Any]:
    return task_type_of(recipe.task).encode(frame, schema, recipe)


def test_mean_and_deviation_are_those_of_the_training_rows() -> None:
    schema = fitted(labelled(a=[2.0, 4.0, 6.0, None]), make_recipe())
    (column,) = schema.numeric
    assert column.mean == pytest.approx(4.0)
    assert column.std == pytest.approx((8 / 3) ** 0.5)  # of 2, 4, 6
    assert column.nullable


def test_the_vocabulary_is_that_of_the_training_rows_and_the_rest_is_index_zero() -> None:
    recipe = make_recipe()
    schema = fitted(labelled(colour=["red", "blue", None, "red"]), recipe)
    (column,) = schema.categorical
    assert (column.levels, column.nullable) == (["blue", "red"], True)
    assert schema.shape.cardinalities == (3,)
    later = labelled(colour=["red", "green", None, "blue", "", "Red"])
    assert encoded(later, schema, recipe)["categorical"][:, 0].tolist() == [2, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([1, 12, 3], ["1", "12", "3"]),
        ([1.0, 2.5, None], ["1", "2.5"]),
        (pd.array([1, None, 3], dtype="Int64"), ["1", "3"]),
        ([True, False, True], ["false", "true"]),
        ([True, None, False], ["false", "true"]),
        (pd.Series(["b", None, "ä"], dtype="str"), ["b", "ä"]),
        (pd.Series(["b", None, "a"], dtype="object"), ["a", "b"]),
        ([datetime(2024, 1, 1), datetime(2024, 1, 2, 10), None], ["2024-01-01 00:00:00", "2024-01-02 10:00:00"]),
    ],
)
def test_a_category_reads_the_same_in_every_table(values: Any, levels: list[str], tmp_path: Path) -> None:
    """One row alone gives the same texts as all rows together: what training saw is what serving sees."""
    recipe = make_recipe(categorical=["c"])
    frame = through_parquet(labelled(c=values), tmp_path)
    schema = fitted(frame, recipe)
    assert schema.categorical[0].levels == levels
    together = encoded(frame, schema, recipe)["categorical"]
    alone = [encoded(frame.iloc[[i]], schema, recipe)["categorical"][0] for i in range(len(frame))]
    np.testing.assert_array_equal(together, alone)
    assert [bool(i) for i in together[:, 0]] == frame["c"].notna().tolist()


@pytest.mark.parametrize("dtype", ["int64", "float64", "float32", "Int64", "bool", "uint8"])
def test_numbers_of_every_type_become_float32(dtype: Any, tmp_path: Path) -> None:
    recipe = make_recipe()
    frame = through_parquet(labelled(a=pd.Series([0, 1, 1, 0]).astype(dtype)), tmp_path)
    schema = fitted(frame, recipe)
    found = encoded(frame, schema, recipe)["numeric"]
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == [0, 1, 1, 0]


DAY = 1_700_000_000 + np.arange(0, 86_400, 3_600)
"""Unix seconds of one day: float32 would round them to a multiple of 128."""


def test_large_numbers_that_differ_little_keep_what_tells_them_apart() -> None:
    recipe = make_recipe()
    frame = labelled(moment=DAY, small=np.arange(24.0))
    schema = fitted(frame, recipe)
    wide, narrow = schema.numeric
    assert (wide.wide, narrow.wide) == (True, False)
    assert [wide.mean, wide.std] == pytest.approx([DAY.mean(), DAY.std()], rel=1e-12)
    found = encoded(frame, schema, recipe)["numeric"]
    assert found.dtype == np.float64 and found[:, 0].tolist() == DAY.tolist()
    contract = task_type_of(recipe.task).contract(schema, recipe, frame.iloc[:1])
    assert [field.dtype for field in contract.inputs] == ["float64", "float32"]
    assert_same_feeds(contract.to_feeds(as_client(frame, contract)), task_type_of(recipe.task).feeds(frame, contract, recipe))


@pytest.mark.parametrize(
    ("values", "wide"),
    [(DAY * 1000, True), (DAY - DAY[0], False), (DAY * 0 + DAY[0], False), (np.linspace(0, 1e9, 24), False)],
    ids=["milliseconds", "from midnight on", "constant", "spread"],
)
def test_doubles_are_for_columns_that_need_them(values: Any, wide: bool) -> None:
    assert fitted(labelled(a=values), make_recipe()).numeric[0].wide == wide


@pytest.mark.parametrize("gap", [False, True])
def test_true_and_false_are_a_number_and_travel_as_themselves(gap: bool, tmp_path: Path) -> None:
    recipe = make_recipe()
    frame = through_parquet(labelled(flag=[True, False, None if gap else True, True]), tmp_path)
    schema = fitted(frame, recipe)
    (column,) = schema.numeric
    assert (column.boolean, column.nullable, schema.categorical) == (True, gap, [])
    task_type = task_type_of(recipe.task)
    contract = task_type.contract(schema, recipe, frame.iloc[[1]])
    assert contract.sample == {"flag": False}
    sent = [{"flag": True}, {"flag": False}, {"flag": None if gap else True}, {"flag": 1}]
    assert_same_feeds(contract.to_feeds(json.loads(json.dumps(sent))), task_type.feeds(frame, contract, recipe))
    assert task_type.contract(schema, recipe, frame.iloc[[2]]).sample == {"flag": None if gap else True}


def test_classifications_are_scored_for_each_category_too() -> None:
    recipe = make_recipe()
    frame = labelled(colour=["red", "red", "blue", "blue"], many=[str(i) for i in range(4)])
    schema = fitted(frame, recipe)
    outputs = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = task_type_of(recipe.task).evaluate(frame, outputs, schema, recipe)
    assert [(s.value, s.accuracy) for s in found.slices if s.column == "colour"] == [("blue", 0.5), ("red", 1.0)]


def test_a_regression_with_an_interval_says_so_and_is_scored_by_it() -> None:
    recipe = make_recipe("regression", {"name": "mlp", "interval": 0.8})
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "y": [10.0, 20.0, 30.0, 41.0]})
    task_type, schema = task_type_of(recipe.task), fitted(frame, recipe)
    assert task_type.contract(schema, recipe, frame.iloc[:1]).interval == 0.8
    outputs = np.array([[10.0, 9.0, 12.0], [20.0, 18.0, 20.0], [30.0, 30.0, 31.0], [40.0, 39.0, 40.0]])
    metrics = task_type.evaluate(frame, outputs, schema, recipe).metrics
    assert (metrics["mae"], metrics["coverage"], metrics["interval_width"]) == (0.25, 0.75, 1.75)
    y = task_type.targets(frame, schema, recipe)
    assert task_type.row_scores("coverage", y, outputs).tolist() == [1, 1, 1, 0]
    assert task_type.row_scores("interval_width", y, outputs).tolist() == [3, 2, 1, 1]


def test_a_regression_with_quantiles_is_scored_by_the_outer_two() -> None:
    recipe = make_recipe("regression", {"name": "mlp", "quantiles": [0.1, 0.5, 0.75, 0.9]})
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "y": [10.0, 20.0, 30.0, 41.0]})
    task_type, schema = task_type_of(recipe.task), fitted(frame, recipe)
    assert task_type.contract(schema, recipe, frame.iloc[:1]).quantiles == [0.1, 0.5, 0.75, 0.9]
    outputs = np.array([[10, 9, 10, 11, 12], [20, 18, 20, 20, 20], [30, 30, 30, 30, 31], [40, 39, 40, 40, 40]], np.float32)
    found = task_type.evaluate(frame, outputs, schema, recipe)
    assert (found.metrics["mae"], found.metrics["coverage"], found.metrics["interval_width"]) == (0.25, 0.75, 1.75)
    assert found.interval == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("regression", {"gate": {"require": {"coverage": ">= 0.8"}}}, "'coverage' needs intervals"),
        ("classification", {"model": {"name": "mlp", "interval": 0.9}}, r"model\.interval: applies to regression only"),
        ("regression", {"train": {"calibrate": "temperature"}}, r"train\.calibrate: applies to class probabilities only"),
        ("classification", {"gate": {"beat_champion": {"metric": "calibration_error"}}}, r"set a bound in gate\.require"),
        ("regression", {"model": {"name": "mlp", "interval": 1.5}}, "less than 1"),
        ("regression", {"model": {"name": "mlp", "interval": 0.9}, "target": "interval"}, "predictions hold their interval"),
    ],
)
def test_intervals_and_temperatures_are_refused_where_they_do_not_fit(task: str, changes: dict[str, Any], said: str) -> None:
    fields = make_recipe(task).model_dump(mode="json")
    fields["data"]["target"] = changes.pop("target", "y")
    with pytest.raises(RecipeError, match=said):
        parse_recipe(yaml.safe_dump({**fields, **changes}), "recipes/toy.yaml")


def test_missing_numbers_stay_missing_until_the_network_fills_them() -> None:
    recipe = make_recipe()
    frame = labelled(a=pd.array([1, None, 3, 4], dtype="Int64"))
    found = encoded(frame, fitted(frame, recipe), recipe)["numeric"][:, 0]
    assert np.isnan(found).tolist() == [False, True, False, False]


@pytest.mark.parametrize("values", [[0.1] * 7, [1e9 / 3] * 7, [0] * 7, [5.0, None, 5.0, 5.0, 5.0, 5.0, 5.0]])
def test_a_constant_column_is_divided_by_one(values: list[float]) -> None:
    assert fitted(labelled(a=values), make_recipe()).numeric[0].std == 1.0


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([None] * 4, "no training row has a value"),
        ([1.0, float("inf"), 2.0, 3.0], "infinite"),
        ([1.0, 1e300, 2.0, 3.0], "too large"),
    ],
)
def test_a_column_that_cannot_be_learned_from_is_named(column: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        fitted(labelled(a=[1.0, 2.0, 3.0, 4.0], b=column), make_recipe())
    assert caught.value.where == "column b" and caught.value.hint


def test_a_table_of_the_target_alone_is_refused() -> None:
    with pytest.raises(DataError, match="there are no feature columns"):
        fitted(pd.DataFrame({"y": ["a", "b"]}), make_recipe())


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match="only one class") as caught:
        fitted(pd.DataFrame({"a": [1.0, 2.0], "y": ["no", "no"]}), make_recipe())
    assert caught.value.where == "column y"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([3, 1, 2, 10], [1, 2, 3, 10]),
        ([1.0, 0.0, 1.0, 0.0], [0, 1]),
        ([True, False, True, False], ["false", "true"]),
        (["b", "a", "c", "B"], ["B", "a", "b", "c"]),
        ([0.5, 1.0, 1.5, 1.0], [1, "0.5", "1.5"]),
        (pd.Series(["x", "y", "x", "y"], dtype="category"), ["x", "y"]),
    ],
)
def test_labels_of_every_type_are_sorted_and_indexed(values: Any, labels: list[Any]) -> None:
    recipe = make_recipe()
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "y": values})
    schema = fitted(frame, recipe)
    assert schema.labels == labels
    assert Schema.model_validate_json(schema.model_dump_json()) == schema
    indices = task_type_of(recipe.task).targets(frame, schema, recipe)
    assert indices.dtype == np.int64
    shown = [str(v).lower() if isinstance(v, bool) else str(v).removesuffix(".0") for v in frame["y"]]
    assert [str(labels[i]) for i in indices] == shown


def test_a_label_no_training_row_has_is_named() -> None:
    recipe = make_recipe()
    schema = fitted(labelled(a=[1.0, 2.0]), recipe)
    with pytest.raises(DataError, match="label 'maybe'") as caught:
        task_type_of(recipe.task).targets(pd.DataFrame({"a": [1.0], "y": ["maybe"]}), schema, recipe)
    assert caught.value.where == "column y"


def test_a_regression_learns_the_targets_mean_and_deviation() -> None:
    recipe = make_recipe("regression")
    schema = fitted(pd.DataFrame({"a": [1, 2, 3], "y": [10, 20, 60]}), recipe)
    assert (schema.target_mean, schema.labels) == (30.0, None)
    assert schema.target_std == pytest.approx((1400 / 3) ** 0.5)  # of -20, -10, 30
    assert task_type_of(recipe.task).targets(pd.DataFrame({"y": [7]}), schema, recipe).tolist() == [7.0]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ([0.1] * 7, "same value"),
        ([1e9 / 3] * 7, "same value"),
        ([1.0, 2.0, None], "1 of 3 training rows have no value"),
        (["far", "near", "far"], "'far', which is not a number"),
        ([1.0, 2.0, float("inf")], "infinite"),
    ],
)
def test_a_target_that_cannot_be_learned_is_refused(target: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        fitted(pd.DataFrame({"a": range(len(target)), "y": target}), make_recipe("regression"))
    assert caught.value.where == "column y" and caught.value.hint


# What a client sends for a row, and what training made of the same row.

MIXED = pd.DataFrame(
    {
        "whole": [1, 2, 3, 4, 5, 6],
        "real": [0.1, -2.5, None, 1e6, 0.0, 3.25],
        "flag": [True, False, True, True, False, False],
        "month": [1, 2, 12, 1, 2, 3],
        "hour": [1.0, None, 5.0, 23.0, 1.0, 5.0],
        "text": ["a", None, "ü 漢", "", "a", 'q"uote'],
        "y": ["no", "yes", "no", "yes", "no", "yes"],
    }
)


def mixed(tmp_path: Path) -> tuple[pd.DataFrame, Recipe, Schema, Contract]:
    recipe = make_recipe(categorical=["month", "hour", "text"])
    frame = through_parquet(MIXED, tmp_path)
    schema = fitted(frame, recipe)
    return frame, recipe, schema, task_type_of(recipe.task).contract(schema, recipe, frame.iloc[:1])


def as_client(frame: pd.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    """Rows as a person would write them in JSON by the contract: nothing is null, a category is text without a dot."""
    rows = []
    for row in frame.to_dict("records"):
        instance: dict[str, Any] = {}
        for field in contract.inputs:
            value = row[field.name]
            if value is None or value != value:
                instance[field.name] = None
            elif field.dtype == "string":
                instance[field.name] = value if isinstance(value, str) else f"{value:g}"
            elif field.boolean:
                instance[field.name] = bool(value)
            else:
                instance[field.name] = float(value)
        rows.append(instance)
    return rows


def assert_same_feeds(got: Feeds, wanted: Feeds) -> None:
    assert list(got) == list(wanted)
    for name in wanted:
        assert got[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


def test_rows_sent_by_a_client_are_the_rows_that_were_trained_on(tmp_path: Path) -> None:
    frame, recipe, _, contract = mixed(tmp_path)
    sent = json.loads(json.dumps(as_client(frame, contract)))
    assert_same_feeds(contract.to_feeds(sent), task_type_of(recipe.task).feeds(frame, contract, recipe))


def test_a_category_of_numbers_is_text_in_contract_and_sample(tmp_path: Path) -> None:
    _, _, schema, contract = mixed(tmp_path)
    fields = {field.name: field for field in contract.inputs}
    assert (fields["month"].dtype, fields["month"].levels) == ("string", ["1", "12", "2", "3"])
    assert fields["hour"].levels == ["1", "23", "5"]
    assert (contract.sample["month"], contract.sample["hour"]) == ("1", "1")
    assert [c.name for c in schema.numeric] == ["whole", "real", "flag"]


@pytest.mark.parametrize("row", range(6))
def test_every_row_makes_a_sample_that_the_contract_takes(row: int, tmp_path: Path) -> None:
    frame, recipe, schema, _ = mixed(tmp_path)
    task_type = task_type_of(recipe.task)
    contract = task_type.contract(schema, recipe, frame.iloc[[row]])
    sample = json.loads(json.dumps(contract.sample, allow_nan=False))
    assert_same_feeds(contract.to_feeds([sample]), task_type.feeds(frame.iloc[[row]], contract, recipe))


def test_a_sample_row_without_a_number_that_is_asked_for_takes_the_mean() -> None:
    recipe = make_recipe()
    schema = fitted(labelled(a=[1.0, 3.0], b=[1.0, None]), recipe)
    contract = task_type_of(recipe.task).contract(schema, recipe, pd.DataFrame({"a": [np.nan], "b": [np.nan], "y": ["no"]}))
    assert contract.sample == {"a": 2.0, "b": None}
    contract.to_feeds([contract.sample])


def test_a_contract_comes_back_from_its_file(tmp_path: Path) -> None:
    contract = mixed(tmp_path)[3]
    contract.write(tmp_path / "contract.json")
    assert Contract.read(tmp_path / "contract.json") == contract


# Images.


def small_images(rows: int = 4, height: int = 2, width: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 256, (rows, height * width)), columns=[f"p{i}" for i in range(height * width)])
    frame.insert(2, "y", [3, 8] * (rows // 2))  # the target need not be the last column
    return frame


def test_pixels_keep_their_place() -> None:
    recipe = make_recipe("image-classification", image=[2, 3])
    frame = small_images()
    schema = fitted(frame, recipe)
    assert (schema.shape.image, schema.labels) == ((1, 2, 3), [3, 8])
    image = encoded(frame, schema, recipe)["image"]
    assert image.shape == (4, 2, 3) and image.dtype == np.uint8
    assert [image[1, 0, 0], image[1, 1, 2]] == [frame["p0"][1], frame["p5"][1]]


def test_an_image_sent_by_a_client_is_the_image_that_was_trained_on() -> None:
    recipe = make_recipe("image-classification", image=[2, 3])
    frame = small_images()
    task_type, schema = task_type_of(recipe.task), fitted(frame, recipe)
    contract = task_type.contract(schema, recipe, frame.iloc[:1])
    sent = [{"image": frame.drop(columns="y").iloc[i].to_numpy().reshape(2, 3).tolist()} for i in range(4)]
    assert contract.sample == sent[0]
    assert_same_feeds(contract.to_feeds(json.loads(json.dumps(sent))), task_type.feeds(frame, contract, recipe))


def test_a_size_that_does_not_fit_the_columns_is_the_recipes_mistake() -> None:
    with pytest.raises(RecipeError, match=r"data\.image is 3 × 3 = 9 pixels, but the data has 6"):
        fitted(small_images(), make_recipe("image-classification", image=[3, 3]))


@pytest.mark.parametrize("pixel", [256, -1, 0.5, None])
def test_a_pixel_outside_of_a_byte_is_refused_instead_of_wrapped(pixel: float | None) -> None:
    frame = small_images().astype({"p4": "float64"})
    frame.loc[2, "p4"] = pixel
    recipe = make_recipe("image-classification", image=[2, 3])
    with pytest.raises(DataError, match="a pixel is") as caught:
        encoded(frame, fitted(small_images(), recipe), recipe)
    assert caught.value.where == "column p4"
