"""The statistics that take a version back, held against scipy and against their own promises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from scipy import stats

from headrace.recipe.rollout import Bounds
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.rollout.judging import (
    CONFIDENCE,
    Seen,
    agreement_left,
    difference_at_least,
    judge,
    stability_index,
    wilson,
)
from headrace.serving.rollout.shadow import agreement

BOUNDS = Bounds()


def seen(requests: int, errors: int = 0, slow: int = 0, fast_seconds: float = 0.004, **answers: float) -> Seen:
    """So many requests, most of them fast, `slow` of them within 0.25 s."""
    buckets = ((fast_seconds, requests - slow), (0.02, requests - slow), (0.25, requests), (1.0, requests))
    return Seen(PoolStats(requests, errors, 0, buckets), {("replica", answer): count for answer, count in answers.items()})


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (3, 50), (40, 50), (50, 50), (7, 10_000)])
def test_wilson_is_that_of_scipy(k: int, n: int) -> None:
    wanted = stats.binomtest(k, n).proportion_ci(2 * CONFIDENCE - 1, method="wilson")
    assert wilson(k / n, n) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_one_unlucky_request_takes_nothing_back() -> None:
    champion = seen(1000)
    for requests in (50, 100, 1000):
        assert judge(seen(requests, errors=1), champion, BOUNDS).bound is None
        assert judge(seen(requests, slow=1), champion, BOUNDS).bound is None


def test_many_errors_do_and_say_how_many() -> None:
    reading = judge(seen(50, errors=10), seen(1000, errors=2), BOUNDS)
    assert reading.bound == "error_rate"
    assert reading.said == "20.0% of 50 requests failed, and 0.2% of the champion's; error_rate allows 1.0% more"
    assert judge(seen(50, errors=10), seen(1000, errors=180), BOUNDS).bound is None, "the champion fails as often"


def test_chance_stays_within_the_bounds_and_a_true_fault_does_not() -> None:
    """Of 2,000 versions that are as good as the champion hardly any is taken back; of those with 5 % of errors nearly all."""
    rng = np.random.default_rng(0)
    false = sum(difference_at_least(e / 200, 200, 0.01, 4000) > 0.01 for e in rng.binomial(200, 0.01, 2000))
    true = sum(difference_at_least(e / 1000, 1000, 0.01, 4000) > 0.01 for e in rng.binomial(1000, 0.06, 200))
    assert false <= 2 and true >= 190


def test_slow_answers_leave_the_bound_but_not_where_all_are_quick() -> None:
    reading = judge(seen(100, slow=30), seen(1000), BOUNDS)
    assert reading.bound == "latency" and "latency allows 14 ms (2 times)" in reading.said
    assert judge(seen(100, slow=30), seen(1000, slow=300), BOUNDS).bound is None, "the champion is as slow"
    assert judge(seen(100, fast_seconds=0.008), seen(1000, fast_seconds=0.002), BOUNDS).bound is None, "6 ms are nothing"


def test_other_answers_leave_the_bound_and_chance_does_not() -> None:
    assert judge(seen(100, a=100), seen(1000, a=500, b=500), BOUNDS).bound == "distribution"
    assert judge(seen(100, a=55, b=45), seen(1000, a=500, b=500), BOUNDS).bound is None
    assert judge(seen(100, a=100), seen(1000), BOUNDS).bound is None, "a champion that tells nothing cannot be compared"


def enumerate_named(counts: Iterable[int]) -> Iterator[tuple[str, float]]:
    return ((str(i), float(count)) for i, count in enumerate(counts))


def test_the_stability_index_of_equal_versions_stays_below_what_chance_gives() -> None:
    rng = np.random.default_rng(1)
    shares = np.arange(1, 11) / 55
    left = 0
    for _ in range(2000):
        e, a = rng.multinomial(2000, shares), rng.multinomial(100, shares)
        index, chance = stability_index(dict(enumerate_named(e)), dict(enumerate_named(a)))
        left += index > chance
    assert left <= 10


def test_the_stability_index_is_its_formula() -> None:
    expected, actual = {"a": 600.0, "b": 400.0}, {"a": 50.0, "b": 50.0}
    assert stability_index(expected, actual)[0] == pytest.approx(
        (0.5 - 0.6) * np.log(0.5 / 0.6) + 0.1 * np.log(0.5 / 0.4), rel=0.02
    )
    assert stability_index({str(i): 1.0 for i in range(500)}, {f"other {i}": 1.0 for i in range(50)})[0] == 0.0, (
        "texts, each of which came once, say nothing"
    )


def test_with_too_few_requests_nothing_is_judged() -> None:
    reading = judge(seen(49, errors=49, a=49), seen(1000, a=500, b=500), BOUNDS)
    assert reading.bound is None and reading.error_rate == 1.0


def test_a_replica_that_was_started_anew_counts_from_zero() -> None:
    before, after = seen(10, a=100), seen(30, a=7, b=2)
    assert after.since(before).by_answer == {"a": 7, "b": 2}
    assert seen(30, a=150).since(before).by_answer == {"a": 50}


def test_agreement_counts_requests_that_both_answered() -> None:
    champion = {"1": ["a"], "2": ["b"], "3": ["a"], "4": ["b"], "5": ["a"]}
    assert agreement(champion, {"1": ["a"], "2": ["a"], "9": ["a"], "4": ["b"]}) == (2, 3)
    values = {str(i): [float(i)] for i in range(100)}
    assert agreement(values, {key: [value + 1] for key, (value,) in values.items()}) == (100, 100)
    assert agreement(values, {key: [value + 40] for key, (value,) in values.items()}) == (0, 100)
    assert agreement({str(i): [f"a text {i}"] for i in range(50)}, {str(i): [f"other {i}"] for i in range(50)}) == (0, 0)


def test_too_little_agreement_is_said() -> None:
    assert "60.0% of 100 requests" in str(agreement_left(60, 100, BOUNDS))
    assert agreement_left(75, 100, BOUNDS) is None, "it may be chance"
    assert agreement_left(0, 49, BOUNDS) is None
    assert agreement_left(0, 100, Bounds(agreement=None)) is None
