"""Rows with any number of labels: what is read as a label, and the errors about what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data.formats.files import read_file
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError
from headrace.recipe.recipe import Recipe
from headrace.task_types.label_sets import known_labels, labels_in, multi_hot, unknown_labels
from tests.bento_projects import fitted, make_recipe


def recipe_of(target: Any = "tags", **data: Any) -> Recipe:
    return make_recipe("multilabel-classification", target=target, **data)


@pytest.mark.parametrize(
    ("values", "data"),
    [
        (['["a", "b"]', "[]", '["b"]'], {}),
        (["a|b", "", "b"], {"label_separator": "|"}),
        (["a , b,", None, "b,b"], {"label_separator": ","}),
    ],
    ids=["JSON", "separated", "blanks, gaps and repeats"],
)
def test_labels_are_read_from_lists_and_from_separated_texts(values: list[Any], data: dict[str, Any]) -> None:
    frame, recipe = pd.DataFrame({"tags": values}), recipe_of(**data)
    assert labels_in(frame, recipe) == {"a", "b"}
    assert multi_hot(frame, ["a", "b"], recipe).tolist() == [[1, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    "values",
    [[1, 0], [True, False], ["true", "false"], ["TRUE", "FALSE"], [1.0, 0.0], ["1", "0"], pd.array([True, False], "boolean")],
)
def test_columns_of_true_and_false_are_labels(values: Any) -> None:
    frame, recipe = pd.DataFrame({"a": values, "b": [1, 1]}), recipe_of(["a", "b"])
    assert labels_in(frame, recipe) == {"a", "b"}
    assert multi_hot(frame, ["a", "b"], recipe).tolist() == [[1, 1], [0, 1]]


def test_whole_numbers_stay_numbers_in_lists() -> None:
    frame, recipe = pd.DataFrame({"tags": ["[3, 17]", '["3"]']}), recipe_of()
    assert labels_in(frame, recipe) == {3, 17, "3"}


@pytest.mark.parametrize(
    ("frame", "recipe", "message"),
    [
        ({"tags": ["['a']"]}, recipe_of(), r"row 1 holds \"\['a'\]\", which is not a list of labels"),
        ({"tags": ["[]", "a|b"]}, recipe_of(), r"row 2 holds 'a\|b'.*"),
        ({"tags": ["[1.5]"]}, recipe_of(), "not a list of labels"),
        ({"tags": ["[]", None]}, recipe_of(), "row 2 has no value; a row without labels has an empty list"),
        ({"a": [0, 2], "b": [0, 1]}, recipe_of(["a", "b"]), "row 2 holds 2, and a column of labels holds true and false"),
        ({"a": [0, None], "b": [0, 1]}, recipe_of(["a", "b"]), "row 2 holds nan"),
    ],
)
def test_what_is_no_label_is_refused_with_its_row(frame: dict[str, Any], recipe: Recipe, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        labels_in(pd.DataFrame(frame), recipe)
    assert error.value.hint


def test_a_label_column_without_a_row_is_refused_and_lists_need_one_label() -> None:
    with pytest.raises(DataError, match="no training row has the label 'b'"):
        known_labels(["a"], recipe_of(["a", "b"]))
    with pytest.raises(DataError, match="no training row has a label"):
        known_labels([], recipe_of())


def test_labels_that_no_training_row_has_are_left_out_and_counted() -> None:
    frame, recipe = pd.DataFrame({"tags": ['["a", "new"]', '["new", "other"]', "[]"]}), recipe_of()
    assert multi_hot(frame, ["a"], recipe).tolist() == [[1], [0], [0]]
    assert unknown_labels(frame, ["a"], recipe) == (["new", "other"], 2)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.dictionary(pa.int8(), pa.string()))]
)
def test_lists_in_parquet_are_stored_as_text(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"tags": pa.array([["a", "ü"], [], None], kind), "x": [1, 2, 3]}), path)
    with pytest.raises(DataError, match="column 'tags' holds"):
        read_file(path)
    table = read_file(path, ReadOptions(label_lists=["tags"]))
    assert table["tags"].to_pylist() == ['["a", "ü"]', "[]", None]


def test_lists_in_json_lines_are_stored_as_text(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text('{"tags": [], "x": 1}\n{"tags": [3, 17], "x": 2}\n')
    assert read_file(path, ReadOptions(label_lists=["tags"]))["tags"].to_pylist() == ["[]", "[3, 17]"]


def test_a_column_of_lists_is_no_class() -> None:
    recipe = make_recipe(target="tags")
    with pytest.raises(DataError, match="holds lists"):
        fitted(pd.DataFrame({"x": np.arange(4.0), "tags": ['["a"]', "[]", '["b"]', "[]"]}), recipe)
