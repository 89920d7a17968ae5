from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.data.splits import positions, split
from headrace.errors import DataError


def rows(n: int, start: int = 0) -> pd.DataFrame:
    ids = np.arange(start, start + n)
    return pd.DataFrame({"n": ids, "text": [f"t{i}" for i in ids], "y": ids * 0.5, "month": ids % 3})


def keys(part: pd.DataFrame) -> set[int]:
    return {int(n) for n in part["n"]}


def test_every_row_is_in_exactly_one_part_with_about_the_right_shares(make_recipe: Any) -> None:
    parts = split(rows(20_000), make_recipe())
    train, validation, test = keys(parts.train), keys(parts.validation), keys(parts.test)
    assert train | validation | test == set(range(20_000)) and not (train & validation or train & test or validation & test)
    # Five standard deviations of a binomial share: sqrt(20000 * 0.2 * 0.8) = 57, sqrt(20000 * 0.1 * 0.9) = 42.
    assert abs(len(test) - 4000) < 5 * 57 and abs(len(validation) - 2000) < 5 * 42


def test_rows_never_move_when_data_is_appended_even_if_a_column_changes_type(make_recipe: Any) -> None:
    recipe = make_recipe()
    before = split(rows(500), recipe)
    more = rows(300, start=500).astype({"n": "float64"})
    more["month"] = np.nan  # whole numbers become floats in the column as a whole
    after = split(pd.concat([rows(500), more], ignore_index=True), recipe)
    for name in ("train", "validation", "test"):
        assert keys(getattr(before, name)) == {k for k in keys(getattr(after, name)) if k < 500}


def test_duplicates_fall_together(make_recipe: Any) -> None:
    parts = split(pd.concat([rows(400), rows(400)], ignore_index=True), make_recipe())
    assert not keys(parts.train) & keys(parts.test) and not keys(parts.train) & keys(parts.validation)


def test_another_seed_gives_another_division_of_numbers_too() -> None:
    numbers = rows(1000)[["n", "y"]]
    a, b = positions(numbers, 1), positions(numbers, 2)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15 and (a == positions(numbers, 1)).all()


def test_place_is_independent_of_neighbours_and_chunks() -> None:
    frame = rows(45_000)
    assert positions(frame, 7)[44_000] == positions(frame.iloc[[44_000]], 7)[0]


def test_by_time_the_last_value_is_the_test_set(make_recipe: Any) -> None:
    parts = split(rows(300), make_recipe(split={"time": {"column": "month"}, "validation": 0.2}))
    assert set(parts.test["month"]) == {2} and set(parts.train["month"]) | set(parts.validation["month"]) == {0, 1}


@pytest.mark.parametrize(
    ("frame", "time", "said"),
    [
        (rows(2), None, "would be empty"),
        (rows(50).assign(month=1), "month", "one value only"),
        (rows(50).assign(month=[np.nan, *[1.0] * 49]), "month", "1 rows have no value"),
        (rows(50), "mouth", "did you mean 'month'"),
    ],
)
def test_a_split_that_cannot_be_says_why(make_recipe: Any, frame: pd.DataFrame, time: str | None, said: str) -> None:
    recipe = make_recipe(split={"time": {"column": time}} if time else {})
    with pytest.raises(DataError, match=said):
        split(frame, recipe)
