"""The statistics that abort a roll-out: their error rates and their formulas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from headrace.recipe.serve import Bounds
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.rollout.canary_analysis import (
    CONFIDENCE,
    PoolSnapshot,
    analyse,
    difference_at_least,
    low_agreement,
)
from headrace.serving.rollout.population_stability import population_stability_index
from headrace.serving.rollout.shadow import agreement

BOUNDS = Bounds()


def snapshot(requests: int, errors: int = 0, slow: int = 0, fast_seconds: float = 0.004, **answers: float) -> PoolSnapshot:
    """Counters of `requests` fast requests, except that `slow` of them took 0.25 s."""
    buckets = ((fast_seconds, requests - slow), (0.02, requests - slow), (0.25, requests), (1.0, requests))
    return PoolSnapshot(
        PoolStats(requests, errors, 0, buckets), {("replica", answer): count for answer, count in answers.items()}
    )


def test_one_failed_or_slow_request_aborts_nothing() -> None:
    champion = snapshot(1000)
    for requests in (50, 100, 1000):
        assert analyse(snapshot(requests, errors=1), champion, BOUNDS).bound is None
        assert analyse(snapshot(requests, slow=1), champion, BOUNDS).bound is None


def test_many_errors_leave_the_bound_with_their_numbers() -> None:
    measured = analyse(snapshot(50, errors=10), snapshot(1000, errors=2), BOUNDS)
    assert measured.bound == "error_rate"
    assert measured.reason == "20.0% of 50 requests failed, and 0.2% of the champion's; error_rate allows 1.0% more"
    assert analyse(snapshot(50, errors=10), snapshot(1000, errors=180), BOUNDS).bound is None, "the champion fails as often"


def test_chance_stays_within_the_bounds_and_a_real_fault_does_not() -> None:
    """Of 2,000 versions as good as the champion at most 2 are rejected; of 200 with 5 % more errors at least 190 are."""
    rng = np.random.default_rng(0)
    false = sum(difference_at_least(e / 200, 200, 0.01, 4000) > 0.01 for e in rng.binomial(200, 0.01, 2000))
    true = sum(difference_at_least(e / 1000, 1000, 0.01, 4000) > 0.01 for e in rng.binomial(1000, 0.06, 200))
    assert false <= 2 and true >= 190


def test_slow_answers_leave_the_bound_unless_all_are_fast() -> None:
    measured = analyse(snapshot(100, slow=30), snapshot(1000), BOUNDS)
    assert measured.bound == "latency" and "latency allows 14 ms (2 times)" in measured.reason
    assert analyse(snapshot(100, slow=30), snapshot(1000, slow=300), BOUNDS).bound is None, "the champion is as slow"
    assert analyse(snapshot(100, fast_seconds=0.008), snapshot(1000, fast_seconds=0.002), BOUNDS).bound is None, (
        "a difference of 6 ms is ignored"
    )


def test_a_different_distribution_leaves_the_bound_and_chance_does_not() -> None:
    assert analyse(snapshot(100, a=100), snapshot(1000, a=500, b=500), BOUNDS).bound == "distribution"
    assert analyse(snapshot(100, a=55, b=45), snapshot(1000, a=500, b=500), BOUNDS).bound is None
    assert analyse(snapshot(100, a=100), snapshot(1000), BOUNDS).bound is None, (
        "a champion without counted answers cannot be compared"
    )


def enumerate_named(counts: Iterable[int]) -> Iterator[tuple[str, float]]:
    return ((str(i), float(count)) for i, count in enumerate(counts))


def test_the_stability_index_of_equal_versions_stays_below_the_chance_value() -> None:
    rng = np.random.default_rng(1)
    shares = np.arange(1, 11) / 55
    above = 0
    for _ in range(2000):
        e, a = rng.multinomial(2000, shares), rng.multinomial(100, shares)
        index, chance = population_stability_index(dict(enumerate_named(e)), dict(enumerate_named(a)), CONFIDENCE)
        above += index > chance
    assert above <= 10


def test_the_stability_index_equals_its_formula() -> None:
    expected, actual = {"a": 600.0, "b": 400.0}, {"a": 50.0, "b": 50.0}
    assert population_stability_index(expected, actual, CONFIDENCE)[0] == pytest.approx(
        (0.5 - 0.6) * np.log(0.5 / 0.6) + 0.1 * np.log(0.5 / 0.4), rel=0.02
    )
    texts, others = {str(i): 1.0 for i in range(500)}, {f"other {i}": 1.0 for i in range(50)}
    assert population_stability_index(texts, others, CONFIDENCE)[0] == 0.0, "texts that occur once are not compared"


def test_too_few_requests_are_not_judged() -> None:
    measured = analyse(snapshot(49, errors=49, a=49), snapshot(1000, a=500, b=500), BOUNDS)
    assert measured.bound is None and measured.error_rate == 1.0


def test_a_restarted_replica_counts_from_zero() -> None:
    before, after = snapshot(10, a=100), snapshot(30, a=7, b=2)
    assert after.since(before).by_answer == {"a": 7, "b": 2}
    assert snapshot(30, a=150).since(before).by_answer == {"a": 50}


def test_agreement_counts_requests_that_both_answered() -> None:
    champion = {"1": ["a"], "2": ["b"], "3": ["a"], "4": ["b"], "5": ["a"]}
    assert agreement(champion, {"1": ["a"], "2": ["a"], "9": ["a"], "4": ["b"]}) == (2, 3)
    values = {str(i): [float(i)] for i in range(100)}
    assert agreement(values, {key: [value + 1] for key, (value,) in values.items()}) == (100, 100)
    assert agreement(values, {key: [value + 40] for key, (value,) in values.items()}) == (0, 100)
    assert agreement({str(i): [f"a text {i}"] for i in range(50)}, {str(i): [f"other {i}"] for i in range(50)}) == (0, 0)


def test_low_agreement_is_reported_with_its_numbers() -> None:
    assert "60.0% of 100 requests" in str(low_agreement(60, 100, BOUNDS))
    assert low_agreement(75, 100, BOUNDS) is None, "it may be chance"
    assert low_agreement(0, 49, BOUNDS) is None
    assert low_agreement(0, 100, Bounds(agreement=None)) is None
