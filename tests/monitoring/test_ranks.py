"""The buckets between order statistics: new rows fall into them with exactly the stated chance, for any distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.monitoring.ranks import NUMBER_ENDS, RankBuckets, buckets_of_levels, buckets_of_numbers, ranks_at

SAMPLES = 4_000
REFERENCE_ROWS = 40


def normal(rng: np.random.Generator, count: int) -> Any:
    return rng.normal(size=count)


def mostly_zero(rng: np.random.Generator, count: int) -> Any:
    return np.where(rng.random(count) < 0.6, 0.0, rng.exponential(size=count).round(1))


def often_missing(rng: np.random.Generator, count: int) -> Any:
    return np.where(rng.random(count) < 0.3, np.nan, rng.integers(0, 5, count))


def constant(rng: np.random.Generator, count: int) -> Any:
    return np.full(count, 7.0)


def categories(rng: np.random.Generator, count: int) -> Any:
    """Some rare, so that a reference sample often does not have them."""
    levels = np.array([None, *"abcdefghijklmnop"], dtype=object)
    p = np.array([5, 40, 20, 10, *([1] * 13)], dtype=float)
    return rng.choice(levels, count, p=p / p.sum())


ORDER = Counter(categories(np.random.default_rng(0), 20).tolist())
"""One sample for all references: ranks and order are fixed before."""


def reference(draw: Callable[..., Any], rng: np.random.Generator) -> RankBuckets:
    if draw is not categories:
        return buckets_of_numbers(draw(rng, REFERENCE_ROWS), rng)
    return buckets_of_levels(ORDER, Counter(draw(rng, REFERENCE_ROWS).tolist()), rng)


@pytest.mark.parametrize("draw", [normal, mostly_zero, often_missing, constant, categories])
def test_two_new_rows_follow_polyas_urn_exactly(draw: Callable[..., Any]) -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(SAMPLES):
        buckets = reference(draw, rng)
        pairs.append(buckets.assign(draw(rng, 2), rng))
    first, second = np.array(pairs).T
    gaps = np.array(buckets.gaps)
    total = gaps.sum()
    assert total == REFERENCE_ROWS + 1
    expected = gaps / total
    seen = np.bincount(first, minlength=len(gaps)) / SAMPLES
    error = np.sqrt(expected * (1 - expected) / SAMPLES)
    assert (np.abs(seen - expected) < 4.5 * error + 1e-9).all()
    same = float(((gaps / total) * ((gaps + 1) / (total + 1))).sum())  # a bucket is likelier once it has been drawn
    assert abs((first == second).mean() - same) < 4.5 * np.sqrt(same / SAMPLES)


def test_ranks_depend_on_the_number_of_rows_alone_and_are_few() -> None:
    assert ranks_at(NUMBER_ENDS, 1).tolist() == [1]
    assert ranks_at(NUMBER_ENDS, 2).tolist() == [1, 2]
    found = ranks_at(NUMBER_ENDS, 10_000)
    assert len(found) == 19
    assert found[0] == 1 and found[1] == 100 and found[-1] == 10_000


def test_each_frequent_category_has_about_its_own_bucket() -> None:
    rng = np.random.default_rng(0)
    shares = {"a": 0.6, "b": 0.3, "c": 0.09, "d": 0.01}
    order, counts = ({level: round(rows * share) for level, share in shares.items()} for rows in (500, 2_000))
    buckets = buckets_of_levels(order, counts, rng)
    assert buckets.levels == ["a", "b", "c", "d"]
    assert buckets.gaps == [1, 1_199, 600, 180, 20, 1]


def test_values_beyond_the_reference_are_in_the_outer_buckets() -> None:
    rng = np.random.default_rng(0)
    buckets = buckets_of_numbers(np.arange(1_000.0), rng)
    found = buckets.assign(np.array([-1.0, -np.inf, np.nan, 2_000.0, np.inf, 500.5]), rng)
    last = len(buckets.gaps) - 1
    assert found.tolist()[:5] == [0, 0, 0, last, last]
    assert 0 < found[5] < last


def test_categories_that_were_never_seen_are_last() -> None:
    rng = np.random.default_rng(0)
    buckets = buckets_of_levels({"a": 6, "b": 4}, {"a": 600, "b": 400}, rng)
    found = buckets.assign(np.array(["new", "new", None], dtype=object), rng)
    assert found.tolist() == [len(buckets.gaps) - 1] * 2 + [0]


def test_without_a_reference_there_is_one_bucket() -> None:
    rng = np.random.default_rng(0)
    for buckets in (buckets_of_numbers(np.zeros(0), rng), buckets_of_levels({}, {}, rng)):
        assert buckets.gaps == [1]
        values = np.zeros(3) if buckets.levels is None else np.array(["x", None, "y"], dtype=object)
        assert buckets.count(values, rng).tolist() == [3]


def test_buckets_survive_json() -> None:
    rng = np.random.default_rng(0)
    buckets = buckets_of_numbers(often_missing(rng, 500), rng)
    again = RankBuckets.model_validate_json(buckets.model_dump_json())
    values = often_missing(rng, 300)
    assert again == buckets
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    assert again.assign(values, one).tolist() == buckets.assign(values, other).tolist()
