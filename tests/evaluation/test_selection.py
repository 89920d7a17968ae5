"""The best of several models looks too good on the rows by which it was chosen; the correction says by how much."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.evaluation.selection import corrected_for_choice

Score = Callable[[int, NDArray[np.int64]], float]


def accuracies(right: NDArray[np.bool_]) -> Score:
    return lambda model, at: float(right[model][at].mean())


def test_equal_models_are_no_better_than_chance() -> None:
    """30 models that guess: the best one seems better than a half, and the corrected value is not, over many repetitions."""
    rng = np.random.default_rng(3)
    best, corrected = [], []
    for _ in range(30):
        right = rng.random((30, 200)) < 0.5
        found = corrected_for_choice(accuracies(right), 30, 200, is_higher_better=True, resamples=60)
        assert found is not None
        best.append(right.mean(axis=1).max())
        corrected.append(found.value)
        assert found.optimism == pytest.approx(best[-1] - found.value)
    assert np.mean(best) > 0.56
    assert abs(np.mean(corrected) - 0.5) < 0.015


def test_a_model_that_is_clearly_better_has_little_optimism() -> None:
    rng = np.random.default_rng(4)
    right = rng.random((10, 400)) < np.where(np.arange(10) == 3, 0.95, 0.6)[:, None]
    found = corrected_for_choice(accuracies(right), 10, 400, is_higher_better=True)
    assert found is not None and abs(found.optimism) < 0.01
    assert found.lower < found.value < found.upper and found.value == pytest.approx(right[3].mean(), abs=0.01)


def test_optimism_is_positive_where_lower_is_better() -> None:
    errors = np.random.default_rng(5).exponential(1.0, (20, 100))
    found = corrected_for_choice(lambda model, at: float(errors[model][at].mean()), 20, 100, is_higher_better=False)
    assert found is not None and found.optimism > 0 and found.value > errors.mean(axis=1).min()


def test_a_score_that_is_undefined_on_most_draws_gives_no_correction() -> None:
    assert corrected_for_choice(lambda model, at: float("nan"), 3, 10, is_higher_better=True) is None
    assert corrected_for_choice(accuracies(np.ones((2, 1), dtype=bool)), 2, 1, is_higher_better=True) is None
