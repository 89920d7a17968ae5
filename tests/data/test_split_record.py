"""Which test rows a model has certainly not been trained on, from the records of two splits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.data.split_record import SplitRecord, has_seen_test_rows, record_of, unseen_rows
from headrace.data.splits import Splits, first_test_value, row_keys, split
from headrace.errors import DataError
from headrace.recipe.recipe import Recipe, parse_recipe
from tests.projects import TINY_TABLE

FRAME = pd.DataFrame(
    {"x": np.arange(600.0), "person": np.arange(600) // 4, "month": np.arange(600) // 100, "colour": ["red", "blue"] * 300}
).assign(day=pd.date_range("2024-01-01", periods=600, freq="8h"))


def recipe_with(**fields: Any) -> Recipe:
    recipe = parse_recipe(TINY_TABLE, "recipes/tiny.yaml")
    fields = {"test": 0.3, "validation": 0.1, "seed": 1, **fields}
    data = recipe.data.model_copy(
        update={"split": recipe.data.split.model_validate(fields), "target": "colour", "columns": None, "graph": None}
    )
    return recipe.model_copy(update={"data": data})


def divided(recipe: Recipe, frame: pd.DataFrame) -> tuple[SplitRecord, Splits]:
    found, time = split(frame, recipe), recipe.data.split.time
    last = None if time is None else first_test_value([frame], time)
    return record_of(recipe, list(frame.columns), last, found.seen_below), found


SPLITS: dict[str, dict[str, Any]] = {
    "shares": {},
    "another seed": {"seed": 2},
    "a smaller test set": {"test": 0.1},
    "a larger one": {"test": 0.6},
    "per class": {"per_class": {"train": 60, "validation": 60, "test": 120}},
    "more per class": {"per_class": {"train": 100, "validation": 30, "test": 100}},
    "groups": {"group": {"column": "person"}},
    "groups, another seed": {"group": {"column": "person"}, "seed": 3},
    "the last month": {"time": {"column": "month"}},
    "the last 40 days": {"time": {"column": "day", "test": "40 days"}},
}


@pytest.mark.parametrize(("theirs", "ours"), itertools.product(SPLITS, repeat=2))
@pytest.mark.parametrize("grown", [False, True])
def test_no_row_that_counts_as_unseen_was_trained_on(theirs: str, ours: str, grown: bool) -> None:
    """The champion was trained on the first rows, or on all."""
    known = FRAME.iloc[: 400 if grown else 600]
    of_champion, champion = divided(recipe_with(**SPLITS[theirs]), known)
    of_candidate, candidate = divided(recipe_with(**SPLITS[ours]), FRAME)
    assert candidate.test_keys is not None
    try:
        unseen = unseen_rows(of_champion, of_candidate, candidate.test_keys, same_data=not grown)
    except DataError:
        assert theirs != ours, "the same split can always be compared"
        return
    trained_on = set(champion.train["x"]) | set(champion.validation["x"])
    assert not trained_on & set(candidate.test["x"][unseen])
    if theirs == ours and not grown:
        assert unseen.all()


def test_a_row_that_both_held_out_stays() -> None:
    (of_champion, champion), (of_candidate, candidate) = (divided(recipe_with(**SPLITS[name]), FRAME) for name in (
        "shares", "another seed"))  # fmt: skip
    assert candidate.test_keys is not None
    unseen = unseen_rows(of_champion, of_candidate, candidate.test_keys, same_data=True)
    assert set(candidate.test["x"][unseen]) == set(champion.test["x"]) & set(candidate.test["x"]) != set()


def test_an_earlier_month_was_seen() -> None:
    (later, _), (_, candidate) = (divided(recipe_with(**SPLITS["the last month"]), rows) for rows in (FRAME, FRAME[:400]))
    earlier, _ = divided(recipe_with(**SPLITS["the last month"]), FRAME[:400])
    assert candidate.test_keys is not None
    assert not unseen_rows(later, earlier, candidate.test_keys, same_data=False).any()
    assert unseen_rows(earlier, later, candidate.test_keys, same_data=False).all()


def test_the_hash_changes_with_the_division_and_not_with_further_rows() -> None:
    hashes = {name: divided(recipe_with(**fields), FRAME)[0].sha256 for name, fields in SPLITS.items()}
    assert len(set(hashes.values())) == len(SPLITS)
    assert divided(recipe_with(), FRAME[:300])[0].sha256 == hashes["shares"]
    assert divided(recipe_with(**SPLITS["the last month"]), FRAME[:300])[0].sha256 != hashes["the last month"]


def test_rows_of_a_group_share_a_key() -> None:
    keys = row_keys(FRAME, recipe_with(group={"column": "person"}))
    assert len(set(keys.tolist())) == 150 and (keys.reshape(150, 4) == keys[::4, None]).all()


@pytest.mark.parametrize("time", [{"column": "month"}, {"column": "day", "test": "1 month"}, {"column": "day", "test": 0.2}])
def test_test_rows_that_move_with_each_batch_are_seen_by_no_earlier_model(time: dict[str, Any]) -> None:
    recipe = recipe_with(time=time)
    batches = [divided(recipe, FRAME.iloc[:rows]) for rows in range(200, 601, 100)]
    for (of_champion, _), (of_candidate, candidate) in itertools.pairwise(batches):
        assert candidate.test_keys is not None and len(candidate.test_keys) > 50
        assert unseen_rows(of_champion, of_candidate, candidate.test_keys, same_data=False).all()
        assert not has_seen_test_rows(of_champion, of_candidate) and of_champion.sha256 != of_candidate.sha256
        assert has_seen_test_rows(of_candidate, of_champion), "the later model has learned the test rows of the earlier one"


def test_weights_of_a_model_may_be_taken_over_only_if_the_split_is_the_same() -> None:
    of = {name: divided(recipe_with(**fields), FRAME)[0] for name, fields in SPLITS.items()}
    assert not has_seen_test_rows(of["shares"], of["shares"]) and has_seen_test_rows(of["shares"], of["another seed"])
    assert has_seen_test_rows(of["shares"], of["the last month"]) and has_seen_test_rows(of["the last month"], of["shares"])
    assert has_seen_test_rows(of["the last month"], of["the last 40 days"]), "two columns cannot be compared"
    assert has_seen_test_rows(of["per class"], of["per class"]), "ranks move when rows are added"
