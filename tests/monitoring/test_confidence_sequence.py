"""The interval of a mean holds at all times, and narrows."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import DataError
from headrace.monitoring.confidence_sequence import MeanSequence

WINDOWS = 40


@pytest.mark.parametrize("mean", [0.02, 0.5, 0.93])
def test_the_true_mean_is_outside_at_any_time_no_more_often_than_stated(mean: float) -> None:
    rng, missed, streams = np.random.default_rng(3), 0, 120
    for _ in range(streams):
        sequence = MeanSequence(alpha=0.2)
        outside = False
        for window in range(WINDOWS):
            sequence = sequence.add(str(window), rng.random(rng.integers(1, 30)) < mean)
            low, high = sequence.interval
            outside |= not low <= mean <= high
        missed += outside
    assert missed / streams <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / streams)


def test_the_interval_of_many_scores_is_narrow_and_around_their_mean() -> None:
    right = np.random.default_rng(0).random(20_000) < 0.9
    low, high = MeanSequence().add("1", right).interval
    assert low < right.mean() < high
    assert high - low < 0.03  # 1.8 times that of a fixed number of rows, 0.0083 on both sides
    assert MeanSequence().add("1", right).mean == pytest.approx(right.mean())


def test_windows_give_what_all_scores_together_give() -> None:
    scores = np.random.default_rng(0).beta(2, 5, 1_500)
    parts = MeanSequence()
    for i in range(0, 1_500, 100):
        parts = MeanSequence.model_validate_json(parts.model_dump_json()).add(str(i), scores[i : i + 100])
    assert parts.interval == pytest.approx(MeanSequence().add("all", scores).interval)
    assert len(parts.model_dump_json()) < 40_000


def test_a_window_given_twice_counts_once() -> None:
    once = MeanSequence().add("1", np.array([1.0, 0.0, 1.0]))
    assert once.add("1", np.array([0.0])) == once


def test_errors_are_clipped_to_their_bounds_and_the_interval_has_their_unit() -> None:
    errors = np.array([3.0, 4.0, 500.0] * 300)
    sequence = MeanSequence(lowest=0, highest=20).add("1", errors)
    assert sequence.mean == pytest.approx(9.0)
    low, high = sequence.interval
    assert 5 < low < 9 < high < 13


@pytest.mark.parametrize("scores", [np.zeros(200), np.ones(200)])
def test_equal_scores_give_an_interval_at_the_bound(scores: np.ndarray) -> None:
    low, high = MeanSequence().add("1", scores).interval
    assert low <= scores[0] <= high
    assert high - low < 0.1


def test_without_scores_nothing_is_known() -> None:
    empty = MeanSequence()
    assert empty.interval == (0, 1) and empty.mean is None
    assert empty.add("1", np.zeros(0)).interval == (0, 1)


def test_a_score_that_is_nan_is_an_error() -> None:
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        MeanSequence().add("1", np.array([np.nan, 1.0]))
