"""The statistics that abort a roll-out: their error rates and their formulas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from numpy.typing import NDArray

from headrace.recipe.serve import Bounds
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.serving.rollout import recorded_answers
from headrace.serving.rollout.canary_analysis import (
    CONFIDENCE,
    POWER,
    PoolSnapshot,
    analyse,
    detectable_agreement,
    detectable_excess,
    difference_at_least,
    low_agreement,
    why_not_judged,
)
from headrace.serving.rollout.population_stability import population_stability_index
from headrace.serving.rollout.recorded_answers import AnswerReader, ComparedAnswers, Votes, quantile_edges
from headrace.serving.rollout.shadow import Answers, agreement, recorded

BOUNDS = Bounds()


def snapshot(
    requests: int,
    errors: int = 0,
    slow: int = 0,
    fast_seconds: float = 0.004,
    refused: int = 0,
    no_answers: float | None = 0.0,
) -> PoolSnapshot:
    """Counters of `requests` fast requests, except that `slow` of them took 0.25 s."""
    buckets = ((fast_seconds, requests - slow), (0.02, requests - slow), (0.25, requests), (1.0, requests))
    return PoolSnapshot(PoolStats(requests, errors, 0, buckets, refused), {"replica": no_answers})


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
    def bound(new: Votes, champion: Votes) -> str | None:
        return analyse(snapshot(100), snapshot(1000), BOUNDS, (new, champion)).bound

    assert bound({"a": 100.0}, {"a": 500.0, "b": 500.0}) == "distribution"
    assert bound({"a": 55.0, "b": 45.0}, {"a": 500.0, "b": 500.0}) is None
    assert bound({"a": 50.0, "new": 50.0}, {"a": 1000.0}) == "distribution", "a label that the champion does not know"
    assert bound({"a": 99.0, "new": 1.0}, {"a": 1000.0}) is None
    assert bound({"a": 100.0}, {}) is None, "a champion without recorded answers cannot be compared"
    assert bound({"a": 49.0}, {"a": 500.0, "b": 500.0}) is None, "too few"


# -- requests without an answer


def test_a_canary_without_a_finite_answer_to_a_third_of_its_requests_leaves_the_bound() -> None:
    measured = analyse(snapshot(90, refused=30, no_answers=30), snapshot(1700), BOUNDS)
    assert measured.bound == "error_rate" and "33.3% of 90 requests failed, and 0.0% of the champion's" in measured.reason
    live = analyse(snapshot(90, refused=30, no_answers=30), snapshot(1700), BOUNDS, compares_refusals=False)
    assert live.bound == "error_rate", "after a replacement too, when refusals are not compared"
    assert analyse(snapshot(90, refused=1, no_answers=1), snapshot(1700), BOUNDS).bound is None
    as_bad = snapshot(1700, refused=560, no_answers=560)
    assert analyse(snapshot(90, refused=30, no_answers=30), as_bad, BOUNDS).bound is None, "the champion is not better"


def test_a_champion_that_does_not_count_missing_answers_is_compared_by_its_refusals() -> None:
    old = snapshot(1700, refused=560, no_answers=None)
    assert analyse(snapshot(90, refused=30, no_answers=30), old, BOUNDS).bound is None
    found = analyse(snapshot(90, refused=30, no_answers=30), snapshot(1700, no_answers=None), BOUNDS)
    assert found.bound == "refused_rate"


def test_a_canary_that_refuses_far_more_requests_leaves_the_bound() -> None:
    measured = analyse(snapshot(100, refused=20), snapshot(1900, refused=19), BOUNDS)
    assert measured.bound == "refused_rate"
    assert measured.reason == (
        "20.0% of 100 requests were refused (status 400 to 499), and 1.0% of the champion's; refused_rate allows 1.0% more"
    )
    assert "refused 20.00% (1.00%)" in measured.summary()
    assert analyse(snapshot(100, refused=20), snapshot(1900, refused=380), BOUNDS).bound is None, "its clients do it"
    assert analyse(snapshot(100, refused=1), snapshot(1900), BOUNDS).bound is None
    assert analyse(snapshot(100, refused=20), snapshot(1900), BOUNDS, compares_refusals=False).bound is None


# -- requests of many rows, and values


def records(folder: Path, requests: Iterable[Sequence[str | float]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "answers-1.jsonl").open("a") as handle:
        handle.writelines(json.dumps({"id": "x", "answers": list(answers)}) + "\n" for answers in requests)


def test_identical_versions_with_requests_of_one_label_are_rolled_back_at_most_at_the_stated_level(tmp_path: Path) -> None:
    """Ten labels, 5 % of the requests for the canary, 100 rows of one label in each request, a measurement each second."""
    rng, trials, looks = np.random.default_rng(3), 300, 10
    rolled_back = 0
    for trial in range(trials):
        compared = ComparedAnswers(AnswerReader([tmp_path / "new"]), AnswerReader([tmp_path / "old"]))
        votes: tuple[Votes, Votes] = ({}, {})
        for look in range(1, looks + 1):
            drawn = {name: rng.integers(10, size=count) for name, count in (("new", 12), ("old", 228))}
            if trial == 0:  # from the files that replicas write
                for name, labels in drawn.items():
                    records(tmp_path / name, ([str(label)] * 100 for label in labels))
                votes = compared.votes()
                assert sum(votes[0].values()) == pytest.approx(12 * look)
            else:
                for found, labels in zip(votes, drawn.values(), strict=True):
                    for label in labels.tolist():
                        found[str(label)] = found.get(str(label), 0.0) + 1
            if analyse(snapshot(12 * look), snapshot(228 * look), BOUNDS, votes).bound:
                rolled_back += 1
                break
    assert rolled_back <= 7, "about 1 % of all steps, however often they are measured: more than 7 of 300 is beyond chance"


def test_a_request_has_one_vote_however_many_rows_it_has(tmp_path: Path) -> None:
    records(tmp_path / "new", [["a"] * 100, ["b"], ["a", "a", "b", "b"]])
    compared = ComparedAnswers(AnswerReader([tmp_path / "new"]), AnswerReader([tmp_path / "old"]))
    assert compared.votes() == ({}, {}), "what was recorded before does not count"
    records(tmp_path / "new", [["a"] * 100, ["b"], ["a", "a", "b", "b"], []])
    records(tmp_path / "old", [["a"], ["b"]])
    assert compared.votes() == compared.votes() == ({"a": 1.5, "b": 1.5}, {"a": 1.0, "b": 1.0})


def test_lines_that_are_being_written_and_files_that_are_removed_are_read_once_and_not_at_all(tmp_path: Path) -> None:
    reader = AnswerReader([tmp_path])
    records(tmp_path, [["a"]])
    with (tmp_path / "answers-1.jsonl").open("a") as handle:
        handle.write('{"answers": ["b')
        handle.flush()
        assert list(reader.read()) == [["a"]]
        handle.write('"]}\n')
    assert list(reader.read()) == [["b"]] and list(reader.read()) == []
    (tmp_path / "answers-1.jsonl").unlink()
    (tmp_path / "answers-2.jsonl").write_text('{"answers": ["c"]}\n')
    assert list(reader.read()) == [["c"]]


def test_only_the_last_part_of_the_past_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records(tmp_path, ([str(i)] for i in range(100)))
    assert len(list(AnswerReader([tmp_path], with_past=True).read())) == 100
    monkeypatch.setattr(recorded_answers, "TAIL_BYTES", 300)
    found = list(AnswerReader([tmp_path], with_past=True).read())
    assert found[-1] == ["99"] and 5 < len(found) < 20


@pytest.mark.parametrize(
    ("centre", "spread", "other", "other_spread", "differs"),
    [
        (22.0, 1.0, 40.0, 2.0, True),
        (1000.0, 1.0, 1002.0, 1.0, True),
        (22.0, 1.0, 22.0, 1.0, False),
        (0.0, 0.0, 0.0, 0.0, False),
    ],
)
def test_values_are_compared_between_quantiles_of_the_champions_answers(
    centre: float, spread: float, other: float, other_spread: float, differs: bool, tmp_path: Path
) -> None:
    """22 and 40 are both between 20 and 50, which once was one bucket."""
    rng = np.random.default_rng(4)
    compared = ComparedAnswers(AnswerReader([tmp_path / "new"]), AnswerReader([tmp_path / "old"]))
    for _ in range(2):  # before and after the intervals are fixed
        records(tmp_path / "new", ([value] for value in rng.normal(other, other_spread, 100).tolist()))
        records(tmp_path / "old", ([value] for value in rng.normal(centre, spread, 1000).tolist()))
        votes = compared.votes()
        measured = analyse(snapshot(100), snapshot(1000), BOUNDS, votes)
        assert (measured.bound == "distribution") is differs
    assert sum(votes[0].values()) == 200 and sum(votes[1].values()) == 2000
    assert len(votes[1]) == (10 if spread else 1)


def test_quantiles_divide_requests_not_rows_and_ties_stay_together() -> None:
    assert quantile_edges([[float(i)] for i in range(100)]) == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    assert quantile_edges([[0.0] * 900, [1.0]]) == [0.0, 1.0]
    assert quantile_edges([[5.0]] * 50) == [5.0]


# -- the index


def enumerate_named(counts: Iterable[int]) -> Iterator[tuple[str, float]]:
    return ((str(i), float(count)) for i, count in enumerate(counts))


def test_the_stability_index_of_equal_versions_stays_below_the_chance_value() -> None:
    rng = np.random.default_rng(1)
    shares = np.arange(1, 11) / 55
    above = 0
    for _ in range(2000):
        e, a = rng.multinomial(2000, shares), rng.multinomial(100, shares)
        found = population_stability_index(dict(enumerate_named(e)), dict(enumerate_named(a)), CONFIDENCE)
        above += found.index > found.chance
    assert above <= 10


def test_the_stability_index_equals_its_formula() -> None:
    expected, actual = {"a": 600.0, "b": 400.0}, {"a": 50.0, "b": 50.0}
    assert population_stability_index(expected, actual, CONFIDENCE).index == pytest.approx(
        (0.5 - 0.6) * np.log(0.5 / 0.6) + 0.1 * np.log(0.5 / 0.4), rel=0.02
    )
    texts, others = {str(i): 1.0 for i in range(500)}, {f"other {i}": 1.0 for i in range(50)}
    assert population_stability_index(texts, others, CONFIDENCE).index == 0.0, "texts that occur once are not compared"


def test_too_few_requests_are_not_judged() -> None:
    measured = analyse(snapshot(49, errors=49), snapshot(1000), BOUNDS, ({"a": 49.0}, {"a": 500.0, "b": 500.0}))
    assert measured.bound is None and measured.error_rate == 1.0
    assert why_not_judged(measured, BOUNDS) == "49 requests came, 50 are needed"


# -- what a step that passed could have seen


@pytest.mark.parametrize(("count", "champion"), [(50, 950), (200, 3800), (200, 200), (1000, 1000)])
@pytest.mark.parametrize("base", [0.0, 0.02])
def test_a_detectable_excess_of_errors_is_seen_with_the_stated_probability(count: int, champion: int, base: float) -> None:
    share = base + detectable_excess(base, count, champion, BOUNDS.error_rate)
    leaving = [k for k in range(count + 1) if difference_at_least(k / count, count, base, champion) > BOUNDS.error_rate]
    assert scipy.stats.binom.sf(leaving[0] - 1, count, share) == pytest.approx(POWER, abs=0.03)


def test_a_detectable_shift_is_seen_with_the_stated_probability() -> None:
    rng, shares = np.random.default_rng(5), np.full(10, 0.1)
    expected = dict(enumerate_named(np.full(10, 1000)))
    wanted = population_stability_index(expected, dict(enumerate_named(np.full(10, 30))), CONFIDENCE).detectable(0.2, POWER)
    assert wanted is not None
    tilt = np.linspace(-1, 1, 10)
    factor = scipy.optimize.brentq(lambda f: index_of(shares, tilted(shares, f * tilt)) - wanted, 0.01, 3)
    seen = 0
    for counts in rng.multinomial(300, tilted(shares, factor * tilt), size=400):
        found = population_stability_index(expected, dict(enumerate_named(counts)), CONFIDENCE)
        seen += found.index > max(0.2, found.chance)
    assert seen / 400 == pytest.approx(POWER, abs=0.08)


def tilted(shares: NDArray[np.float64], tilt: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = shares * np.exp(tilt)
    return weights / weights.sum()


def index_of(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    return float(((actual - expected) * np.log(actual / expected)).sum())


def test_a_detectable_agreement_is_too_low_with_the_stated_probability() -> None:
    for compared in (50, 200, 1000):
        share = detectable_agreement(compared, BOUNDS)
        assert share is not None
        low = max(k for k in range(compared + 1) if low_agreement(k, compared, BOUNDS))
        assert scipy.stats.binom.cdf(low, compared, share) == pytest.approx(POWER, abs=0.03)
    assert detectable_agreement(49, BOUNDS) is detectable_agreement(100, Bounds(agreement=None)) is None


def test_a_step_that_passed_says_what_it_would_have_seen() -> None:
    votes = {"a": 100.0, "b": 100.0}, {"a": 1900.0, "b": 1900.0}
    measured = analyse(snapshot(200), snapshot(3800), BOUNDS, votes)
    assert why_not_judged(measured, BOUNDS) is None
    assert "; would have seen, with 80% probability, 4.5% more errors, " in measured.verdict()
    assert "slow answers, PSI 0." in measured.verdict()
    assert {"detectable_errors", "detectable_slow", "detectable_psi"} <= measured.facts().keys()


def test_a_step_with_too_few_requests_for_the_stated_power_is_not_judged() -> None:
    measured = analyse(snapshot(60), snapshot(60), BOUNDS)
    reason = why_not_judged(measured, BOUNDS)
    assert measured.bound is None and reason is not None
    found = re.fullmatch(
        r"60 requests came, and about (\d+) are needed to see 10.0% more errors than error_rate allows \(detectable\) "
        r"with 80% probability",
        reason,
    )
    assert found and 140 < int(found[1]) < 220
    assert why_not_judged(analyse(snapshot(60), snapshot(60), Bounds(detectable=0.4)), Bounds(detectable=0.4)) is None
    assert analyse(snapshot(60, errors=30), snapshot(60), BOUNDS).bound == "error_rate", "a great fault is seen all the same"


def test_a_restarted_replica_counts_from_zero() -> None:
    before = snapshot(10, no_answers=100)
    assert snapshot(30, no_answers=9).since(before).no_answers == {"replica": 9}
    assert snapshot(30, no_answers=150).since(before).no_answers == {"replica": 50}
    assert not snapshot(30, no_answers=None).since(before).counts_no_answers


def of_one_tenant(answers: dict[str, list[Any]]) -> Answers:
    return {("acme", key): value for key, value in answers.items()}


def test_agreement_counts_requests_that_both_answered() -> None:
    champion = of_one_tenant({"1": ["a"], "2": ["b"], "3": ["a"], "4": ["b"], "5": ["a"]})
    assert agreement(champion, of_one_tenant({"1": ["a"], "2": ["a"], "9": ["a"], "4": ["b"]})) == (2, 3)
    values = of_one_tenant({str(i): [float(i)] for i in range(100)})
    assert agreement(values, {key: [value + 1] for key, (value,) in values.items()}) == (100, 100)
    assert agreement(values, {key: [value + 40] for key, (value,) in values.items()}) == (0, 100)
    texts, others = ({str(i): [f"{kind} {i}"] for i in range(50)} for kind in ("a text", "other"))
    assert agreement(of_one_tenant(texts), of_one_tenant(others)) == (0, 0)


def test_ids_that_clients_repeat_or_share_make_no_disagreement(tmp_path: Path) -> None:
    """Two tenants number their requests from 1, and one of them repeats an id."""
    replica = Replica("digits-v1-aaaa", ReplicaSpec("digits", "1", "b:1"), ("127.0.0.1", 1))
    shadow = Replica("digits-v2-bbbb", ReplicaSpec("digits", "2", "b:2"), ("127.0.0.1", 2))
    lines = [("acme", "1", "a"), ("zeta", "1", "b"), ("zeta", "2", "a"), ("zeta", "2", "b"), ("acme", "3", "b")]
    for each, order in ((replica, lines), (shadow, lines[::-1])):
        (tmp_path / each.id).mkdir()
        (tmp_path / each.id / "answers-1.jsonl").write_text(
            "".join(json.dumps({"id": key, "tenant": tenant, "answers": [answer]}) + "\n" for tenant, key, answer in order)
        )
    assert agreement(recorded(tmp_path, [replica]), recorded(tmp_path, [shadow])) == (3, 3)


def test_low_agreement_is_reported_with_its_numbers() -> None:
    assert "60.0% of 100 requests" in str(low_agreement(60, 100, BOUNDS))
    assert low_agreement(75, 100, BOUNDS) is None, "it may be chance"
    assert low_agreement(0, 49, BOUNDS) is None
    assert low_agreement(0, 100, Bounds(agreement=None)) is None
