from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.data.splits import positions, same_words, split
from headrace.errors import DataError


def rows(n: int, start: int = 0) -> pd.DataFrame:
    ids = np.arange(start, start + n)
    return pd.DataFrame({"n": ids, "text": [f"t{i}" for i in ids], "y": ids * 0.5, "month": ids % 3})


def keys(part: pd.DataFrame) -> set[int]:
    return {int(n) for n in part["n"]}


def test_every_row_is_in_exactly_one_split_of_about_the_right_size(make_recipe: Any) -> None:
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


def test_duplicates_are_in_the_same_split(make_recipe: Any) -> None:
    parts = split(pd.concat([rows(400), rows(400)], ignore_index=True), make_recipe())
    assert not keys(parts.train) & keys(parts.test) and not keys(parts.train) & keys(parts.validation)


def test_another_seed_gives_another_split_of_numbers_too() -> None:
    numbers = rows(1000)[["n", "y"]]
    a, b = positions(numbers, 1), positions(numbers, 2)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15 and (a == positions(numbers, 1)).all()


def test_a_position_does_not_depend_on_other_rows_or_chunks() -> None:
    frame = rows(45_000)
    assert positions(frame, 7)[44_000] == positions(frame.iloc[[44_000]], 7)[0]


def test_by_time_the_last_value_is_the_test_set(make_recipe: Any) -> None:
    parts = split(rows(300), make_recipe(split={"time": {"column": "month"}, "validation": 0.2}))
    assert set(parts.test["month"]) == {2} and set(parts.train["month"]) | set(parts.validation["month"]) == {0, 1}


@pytest.mark.parametrize(
    ("frame", "time", "message"),
    [
        (rows(2), None, "would be empty"),
        (rows(50).assign(month=1), "month", "one value only"),
        (rows(50).assign(month=[np.nan, *[1.0] * 49]), "month", "1 rows have no value"),
        (rows(50), "mouth", "did you mean 'month'"),
    ],
)
def test_an_impossible_split_gives_the_reason(make_recipe: Any, frame: pd.DataFrame, time: str | None, message: str) -> None:
    recipe = make_recipe(split={"time": {"column": time}} if time else {})
    with pytest.raises(DataError, match=message):
        split(frame, recipe)


def test_predefined_rows_are_the_test_set_and_their_column_is_dropped(make_recipe: Any) -> None:
    frame = rows(400).assign(part=["train", "train", "train", "test"] * 100)
    parts = split(frame, make_recipe(split={"predefined": {}, "validation": 0.2}))
    assert keys(parts.test) == set(range(3, 400, 4)) and keys(parts.train) | keys(parts.validation) == keys(frame) - keys(
        parts.test
    )
    assert 30 < len(parts.validation) < 90 and all("part" not in p.columns for p in (parts.train, parts.validation, parts.test))
    years = split(
        rows(90).assign(year=[2016, 2017, 2018] * 30), make_recipe(split={"predefined": {"column": "year", "test": 2018}})
    )
    assert len(years.test) == 30


def test_a_predefined_value_without_rows_suggests_a_close_match(make_recipe: Any) -> None:
    frame = rows(8).assign(part=["train", "test"] * 4)
    with pytest.raises(DataError, match="no row has part 'tset'; did you mean 'test'"):
        split(frame, make_recipe(split={"predefined": {"test": "tset"}}))
    with pytest.raises(DataError, match="no column 'prat'; did you mean 'part'"):
        split(frame, make_recipe(split={"predefined": {"column": "prat"}}))


def test_rows_of_a_group_stay_in_one_split_when_more_are_added(make_recipe: Any) -> None:
    recipe = make_recipe(split={"group": {"column": "person"}, "test": 0.3})
    frame = rows(1000).assign(person=[f"p{i % 90}" for i in range(1000)])
    place = {key: name for name in ("train", "validation", "test") for key in keys(getattr(split(frame, recipe), name))}
    assert all(len({place[n] for n in range(person, 1000, 90)}) == 1 for person in range(90))
    more = pd.concat([frame, rows(500, start=1000).assign(person=[f"p{i % 120}" for i in range(500)])], ignore_index=True)
    after = split(more, recipe)
    assert all(
        place[key] == name for name in ("train", "validation", "test") for key in keys(getattr(after, name)) if key < 1000
    )
    assert "person" not in after.train.columns


TWEETS = [
    "RT @anna: The flight was LATE again!! http://t.co/abc",
    "the flight was late again",
    "The flight, was late: again 2 http://t.co/xyz #",
    "The flight was early again",
    "!!!",
    "???",
]


def test_texts_with_the_same_words_are_one_group(make_recipe: Any) -> None:
    words = same_words(pd.Series(TWEETS)).tolist()
    assert words == ["the flight was late again"] * 3 + ["the flight was early again", "!!!", "???"]
    recipe = make_recipe(split={"group": {"column": "text", "match": "words"}, "test": 0.4})
    many = pd.DataFrame(
        {"text": [f"{dress} word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300) for dress in ("", "RT @x", "7")]}
    )
    parts = split(many.assign(y=1), recipe)
    seen = [set(same_words(part["text"])) for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, seen)) == 300 and len(set.union(*seen)) == 300


def nodes(n: int) -> pd.DataFrame:
    return pd.DataFrame({"id": np.arange(n), "y": np.arange(n) % 3, "edges": ""})


def test_per_class_takes_a_number_of_each_and_leaves_the_rest_unlabelled(make_recipe: Any) -> None:
    recipe = make_recipe(split={"per_class": {"train": 5, "validation": 20, "test": 50}}, graph={"node": "id", "edges": "e"})
    parts = split(nodes(120), recipe)
    assert parts.train["y"].value_counts().to_dict() == {0: 5, 1: 5, 2: 5}
    assert [len(p) for p in (parts.train, parts.validation, parts.test, parts.rest)] == [15, 20, 50, 35]
    all_ids = pd.concat([parts.train, parts.validation, parts.test, parts.rest])["id"]
    assert sorted(all_ids) == list(range(120))
    shuffled = split(nodes(120).sample(frac=1, random_state=0).assign(edges="1 2"), recipe)
    assert set(shuffled.train["id"]) == set(parts.train["id"]) and set(shuffled.test["id"]) == set(parts.test["id"])


@pytest.mark.parametrize(
    ("per_class", "message"),
    [
        ({"train": 41}, "class 0 has 40 rows, and training needs 41"),
        ({"train": 30, "validation": 10, "test": 21}, "30 rows are left, and validation needs 10"),
    ],
)
def test_too_few_rows_for_a_split_per_class_are_an_error(make_recipe: Any, per_class: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(nodes(120), make_recipe(split={"per_class": per_class}))


def test_only_a_split_per_class_leaves_rows_over(make_recipe: Any) -> None:
    assert split(rows(500), make_recipe()).rest.empty


DAYS = pd.DataFrame({"day": pd.date_range("2023-01-01", periods=200).repeat(2), "y": range(400)})


@pytest.mark.parametrize(
    ("test", "first", "count"),
    [
        ("last", "2023-07-19", 2),
        (0.1, "2023-06-30", 40),
        (0.001, "2023-07-19", 2),
        ("2023-07-01", "2023-07-01", 38),
        ("2023-07-01T00:00:01", "2023-07-02", 36),
    ],
)
@pytest.mark.parametrize("kind", ["times", "texts"])
def test_the_latest_share_or_the_rows_from_a_date_on_are_the_test_set(
    make_recipe: Any, kind: str, test: Any, first: str, count: int
) -> None:
    recipe = make_recipe(split={"time": {"column": "day", "test": test}})
    frame = DAYS if kind == "times" else DAYS.assign(day=DAYS["day"].dt.strftime("%Y-%m-%d"))
    parts = split(frame, recipe)
    assert (str(parts.test["day"].min())[:10], len(parts.test)) == (first, count)
    assert max(parts.train["day"].max(), parts.validation["day"].max()) < parts.test["day"].min()
    assert len(parts.train) + len(parts.validation) + count == 400


def test_a_number_of_one_or_more_is_a_value_in_time(make_recipe: Any) -> None:
    parts = split(
        rows(300).assign(year=[2021, 2022, 2023] * 100), make_recipe(split={"time": {"column": "year", "test": 2022}})
    )
    assert set(parts.test["year"]) == {2022, 2023}


@pytest.mark.parametrize(
    ("frame", "test", "message"),
    [
        (DAYS, "2030-01-01", "no row has a day from 2030-01-01 on"),
        (DAYS, "2020-01-01", "no value before those of the test set"),
        (DAYS, "soon", "'soon' cannot be compared"),
        (DAYS.assign(day=DAYS["day"].dt.strftime("%d/%m/%Y")), 0.1, r"400 texts such as '01/01/2023', whose order is not"),
    ],
)
def test_a_split_by_time_that_cannot_be_made_gives_the_reason(
    make_recipe: Any, frame: pd.DataFrame, test: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        split(frame, make_recipe(split={"time": {"column": "day", "test": test}}))
    assert caught.value.hint


HALF_A_YEAR = pd.date_range("2024-01-01", "2024-06-30", freq="D").repeat(6)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("window", "first"),
    [
        ("3 months", "2024-03-01"),
        ("1 month", "2024-05-01"),
        ("10 days", "2024-05-22"),
        (2, "2024-05-30"),
        ("9 years", "2024-01-01"),
    ],
)
def test_a_window_leaves_the_newest_rows_before_the_test_rows_to_train_on(
    make_recipe: Any, as_text: bool, window: str | int, first: str
) -> None:
    day = HALF_A_YEAR.strftime("%Y-%m-%d") if as_text else HALF_A_YEAR
    frame = pd.DataFrame({"n": range(len(HALF_A_YEAR)), "y": 0.5, "day": day})
    recipe = make_recipe(split={"time": {"column": "day", "test": "30 days"}, "validation": 0.2}, train={"window": window})
    parts = split(frame, recipe)
    assert min(parts.test["day"]) == (day[HALF_A_YEAR == "2024-06-01"][0])
    trained = pd.concat([parts.train, parts.validation])
    assert sorted(trained["n"]) == [
        n for n in range(len(HALF_A_YEAR)) if pd.Timestamp(first) <= HALF_A_YEAR[n] < pd.Timestamp("2024-06-01")
    ]
    assert len(parts.train) + len(parts.validation) + len(parts.test) + len(parts.rest) == len(HALF_A_YEAR)


def test_a_window_of_a_random_split_keeps_each_row_in_its_set(make_recipe: Any) -> None:
    frame = rows(600).assign(month=lambda table: table["n"] // 100)
    everything = split(frame, make_recipe(incremental={"column": "month", "first": 1}))
    recent = split(frame, make_recipe(incremental={"column": "month", "first": 1}, train={"window": 2}))
    assert keys(recent.test) == keys(everything.test)
    for name in ("train", "validation"):
        assert keys(getattr(recent, name)) == {n for n in keys(getattr(everything, name)) if n >= 400}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": {"window": "2 months"}}, "'month', which holds no times, for example 1"),
        ({"split": {"time": {"column": "month", "test": "2 months"}}}, "'month', which holds no times, for example 2"),
    ],
)
def test_a_length_of_time_needs_a_column_of_times(make_recipe: Any, fields: dict[str, Any], message: str) -> None:
    fields = {"split": {"time": {"column": "month"}}, **fields}
    with pytest.raises(DataError, match=message) as caught:
        split(rows(90), make_recipe(**fields))
    assert caught.value.hint
