"""The gate by groups of rows, at levels that resampling cannot resolve, and its error budget over many comparisons."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from headrace.evaluation import paired_tests
from headrace.evaluation.error_budget import PastComparison, confidence_of, next_number
from headrace.evaluation.gate import Comparison, compare, compare_rows
from headrace.recipe.gate import BeatChampion
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION

Array = NDArray[Any]
LEVEL = 0.95


def at_most(level: float, trials: int) -> int:
    """A count that a rate of `level` exceeds once in 10,000 series of `trials`."""
    return int(stats.binom.ppf(1 - 1e-4, trials, level))


def contest(metric: str, rows: tuple[Array, Array, Array], groups: Array | None = None, **beat: float) -> Comparison:
    better = (CLASSIFICATION | REGRESSION)[metric]
    return compare(*rows, beat=BeatChampion(metric=metric, **beat), better=better, seed=0, groups=groups)


def classifiers(rng: np.random.Generator, groups: Array, gain: float = 0.0) -> tuple[Array, Array, Array]:
    """Two models with as much noise, the same for all rows of a group: a group is right or wrong as a whole."""
    count = int(groups.max()) + 1
    y = rng.integers(3, size=count)[groups]
    signal = 2 * np.eye(3)[y]
    logits = [2 * (signal + s * rng.normal(size=(count, 3))[groups]) for s in (1.2 - gain, 1.2)]
    exps = [np.exp(z - z.max(axis=1, keepdims=True)) for z in logits]
    candidate, champion = (e / e.sum(axis=1, keepdims=True) for e in exps)
    return y, candidate, champion


def regressors(rng: np.random.Generator, groups: Array, gain: float = 0.0) -> tuple[Array, Array, Array]:
    count = int(groups.max()) + 1
    y = 3 * rng.normal(size=len(groups))
    candidate, champion = (y + s * rng.normal(size=count)[groups] for s in (1 - gain, 1.0))
    return y, candidate, champion


@pytest.mark.parametrize("metric", [*CLASSIFICATION, *REGRESSION])
def test_equal_models_whose_groups_err_together_are_promoted_no_more_often_than_the_level_allows(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rows instead of groups of ten, about a third of them would be."""
    monkeypatch.setattr(paired_tests, "RESAMPLES", 499)
    rng, trials, groups = np.random.default_rng(21), 60, np.repeat(np.arange(40), 10)
    draw = classifiers if metric in CLASSIFICATION else regressors
    promoted = sum(contest(metric, draw(rng, groups), groups).promoted for _ in range(trials))
    assert promoted <= at_most(1 - LEVEL, trials)


@pytest.mark.parametrize("metric", [*CLASSIFICATION, *REGRESSION])
def test_a_better_model_is_promoted_by_groups_too(metric: str) -> None:
    rng, groups = np.random.default_rng(22), np.repeat(np.arange(200), 5)
    draw = classifiers if metric in CLASSIFICATION else regressors
    found = contest(metric, draw(rng, groups, gain=0.7), groups)
    assert found.promoted and found.groups == 200 and found.rows == 1000
    assert "on the same 1,000 rows in 200 groups" in found.sentence and "by 200 groups" in found.method


def test_groups_of_one_row_give_what_rows_give() -> None:
    rng = np.random.default_rng(23)
    y = rng.normal(size=200)
    rows = y, y + rng.normal(size=200), y + 1.1 * rng.normal(size=200)
    by_row, by_group = contest("mae", rows), contest("mae", rows, rng.permutation(200))
    assert by_group.lower == pytest.approx(by_row.lower, abs=0.02) and by_group.improvement == by_row.improvement
    classified = classifiers(rng, np.arange(400))
    one, other = contest("auc", classified), contest("auc", classified, np.arange(400))
    assert other.upper == pytest.approx(one.upper, abs=0.1 * (one.upper - one.lower))


def test_scores_of_rows_are_compared_by_group() -> None:
    rng, groups = np.random.default_rng(24), np.repeat(np.arange(30), 8)
    scores = [rng.normal(size=30)[groups] + gain for gain in (3.0, 0.0)]
    beat = BeatChampion(metric="rouge_l")
    found = compare_rows(*scores, beat=beat, better="higher", seed=0, groups=groups)
    assert found.promoted and found.groups == 30
    few = compare_rows(*(s[:24] for s in scores), beat=beat, better="higher", seed=0, groups=groups[:24])
    assert not few.promoted, "three groups that all agree are one chance in eight"


# -- levels beyond resampling


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_the_formula_of_the_swap_test_agrees_with_counting_every_exchange(scale: float) -> None:
    rng = np.random.default_rng(0)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=14)))
    for d in (rng.normal(0.6, 1, 14), rng.exponential(size=14) - 0.3, np.array([1.0] * 12 + [-1.0] * 2)):
        exact = float(((signs @ d) >= d.sum() - 1e-9).mean())
        assert paired_tests.sign_flip_tail(scale * d) == pytest.approx(exact, rel=0.15, abs=2e-4)


def test_the_formula_of_the_swap_test_agrees_with_the_exact_mcnemar_test() -> None:
    for won, lost in ((40, 8), (70, 30), (200, 120)):
        d = np.array([1.0] * won + [-1.0] * lost + [0.0] * 50)
        exact = stats.binom.sf(won - 1, won + lost, 0.5)
        assert exact <= paired_tests.sign_flip_tail(d) <= 1.2 * exact, "never too small"
    assert paired_tests.sign_flip_tail(np.ones(10)) == 2.0**-10
    assert paired_tests.sign_flip_tail(-np.ones(10)) == paired_tests.sign_flip_tail(np.zeros(3)) == 1.0


@pytest.mark.parametrize("metric", [*CLASSIFICATION, *REGRESSION])
def test_a_much_better_model_passes_a_level_that_resampling_cannot_resolve(metric: str) -> None:
    rng, rows = np.random.default_rng(25), np.arange(1500)
    draw = classifiers if metric in CLASSIFICATION else regressors
    confidence = confidence_of(52, LEVEL)
    better, equal = draw(rng, rows, gain=0.7), draw(rng, rows)
    assert contest(metric, better, confidence=confidence).promoted
    assert not contest(metric, equal, confidence=confidence).promoted


@pytest.mark.parametrize("metric", ["macro_f1", "rmse", "log_loss"])
def test_formulas_agree_with_resampling_where_both_can_be_had(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, rows = np.random.default_rng(26), np.arange(2000)
    drawn = (classifiers if metric in CLASSIFICATION else regressors)(rng, rows, gain=0.05)
    resampled = contest(metric, drawn)
    monkeypatch.setattr(paired_tests, "TAIL", 10_000)
    formula = contest(metric, drawn)
    assert "bootstrap" in resampled.method and "bootstrap" not in formula.method
    width = resampled.upper - resampled.lower
    assert formula.lower == pytest.approx(resampled.lower, abs=0.06 * width)
    assert formula.upper == pytest.approx(resampled.upper, abs=0.06 * width)
    assert formula.p_value == pytest.approx(resampled.p_value, abs=0.02)


# -- the budget


def test_the_shares_of_all_comparisons_add_up_to_the_budget() -> None:
    spent = [1 - confidence_of(k, LEVEL) for k in range(1, 2001)]
    assert spent[:3] == pytest.approx([0.025, 0.05 / 6, 0.05 / 12])
    assert math.fsum(spent) < 0.05 and math.fsum(spent) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("retrains", [12, 52])
def test_a_series_of_retrains_on_the_same_rows_holds_a_false_promotion_no_more_often_than_stated(retrains: int) -> None:
    """All models are equally good; each is compared with the current champion."""
    rng, series, n = np.random.default_rng(27), 300, 1000
    wrong = 0
    for _ in range(series):
        right = rng.random((retrains + 1, n)) < rng.beta(0.691, 0.0364, n)
        champion = 0
        for k in range(1, retrains + 1):
            won, lost = int((right[k] & ~right[champion]).sum()), int((right[champion] & ~right[k]).sum())
            if won > lost and stats.binom.sf(won - 1, won + lost, 0.5) < 1 - confidence_of(k, LEVEL):
                wrong += 1
                break
    assert wrong <= at_most(1 - LEVEL, series)


def test_comparisons_are_counted_once_each_and_again_from_one_on_other_rows() -> None:
    past = [PastComparison("2", "1", 1, 400), PastComparison("3", "1", 2, 410), PastComparison("3", "1", 2, 410)]
    assert next_number([], "2", "1", 400) == 1
    assert next_number(past, "4", "1", 420) == next_number(past, "2", "3", 420) == 3
    assert next_number(past, "3", "1", 420) == 2, "the same comparison again"
    assert next_number(past, "4", "1", 799) == 3
    assert next_number(past, "4", "1", 800) == 1, "half of the rows are new"
    again = [*past, PastComparison("4", "1", 1, 800)]
    assert next_number(again, "5", "4", 900) == 2 and next_number(again, "5", "4", 1600) == 1


def test_the_verdict_says_the_count_and_what_is_spent() -> None:
    rng = np.random.default_rng(28)
    y = rng.normal(size=100)
    found = contest("mae", (y, y + 0.1 * rng.normal(size=100), y + rng.normal(size=100)), confidence=confidence_of(3, LEVEL))
    counted = found.model_copy(update={"number": 3, "budget": 0.05, "left_out": 7})
    assert "; comparison 3 on these test rows, which spends 0.0042 of 0.05 (chance of any false promotion)" in counted.sentence
    assert "(without 7 that the champion may have been trained on)" in counted.sentence
    assert "comparison" not in found.sentence
