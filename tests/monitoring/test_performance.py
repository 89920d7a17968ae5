"""Estimated performance: right for calibrated probabilities, and checked against truths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, hamming_loss, log_loss, roc_auc_score

from headrace.errors import DataError
from headrace.monitoring.performance import (
    Estimate,
    check_estimates,
    estimate_accuracy,
    estimate_performance,
    expected_auc,
)


def drawn(rng: np.random.Generator, rows: int, classes: int = 2) -> tuple[Any, Any]:
    """Calibrated probabilities, and truths drawn from them."""
    p = rng.dirichlet(np.full(classes, 0.5), rows)
    return p, np.array([rng.choice(classes, p=one) for one in p])


def test_estimates_of_calibrated_probabilities_equal_the_metrics_of_many_rows() -> None:
    p, y = drawn(np.random.default_rng(0), 20_000)
    found = {one.metric: one.value for one in estimate_performance("probabilities", p)}
    assert found["accuracy"] == pytest.approx((p.argmax(axis=1) == y).mean(), abs=0.01)
    assert found["macro_f1"] == pytest.approx(f1_score(y, p.argmax(axis=1), average="macro"), abs=0.01)
    assert found["auc"] == pytest.approx(roc_auc_score(y, p[:, 1]), abs=0.01)
    assert found["log_loss"] == pytest.approx(log_loss(y, p), abs=0.01)


def test_estimates_of_several_labels_per_row_equal_the_metrics_of_many_rows() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 1.0, (5_000, 4))
    y, thresholds = rng.random(p.shape) < p, [0.5, 0.5, 0.3, 0.6]
    given = p >= np.array(thresholds)
    found = {one.metric: one for one in estimate_performance("labels", p, thresholds=thresholds)}
    real = {
        "hamming_loss": hamming_loss(y, given),
        "micro_f1": f1_score(y, given, average="micro"),
        "macro_f1": f1_score(y, given, average="macro"),
        "log_loss": float(np.mean([log_loss(y[:, i], p[:, i]) for i in range(4)])),
    }
    for metric, value in real.items():
        one = found[metric]
        assert one.value is not None and one.low is not None and one.high is not None
        assert one.value == pytest.approx(value, abs=0.02)
        assert one.low < one.value < one.high
    assert found["subset_accuracy"].value is None and "which labels of a row" in (found["jaccard"].reason or "")
    assert all(one.rows == 0 and one.value is None for one in estimate_performance("labels", np.zeros((0, 4))))
    with pytest.raises(DataError, match="not probabilities of labels"):
        estimate_performance("labels", np.array([[3.0, -2.0]]))


def test_intervals_contain_the_metrics_as_often_as_stated() -> None:
    rng, inside = np.random.default_rng(1), {"accuracy": 0, "macro_f1": 0, "log_loss": 0, "auc": 0}
    for _ in range(100):
        p, y = drawn(rng, 80)
        real = {
            "accuracy": (p.argmax(axis=1) == y).mean(),
            "macro_f1": f1_score(y, p.argmax(axis=1), average="macro"),
            "log_loss": log_loss(y, p),
            "auc": roc_auc_score(y, p[:, 1]),
        }
        for one in estimate_performance("probabilities", p, confidence=0.9):
            assert one.low is not None and one.high is not None
            inside[one.metric] += one.low <= real[one.metric] <= one.high
    assert all(count / 100 > 0.82 for count in inside.values()), inside


def test_the_interval_of_equal_probabilities_is_that_of_the_binomial_distribution() -> None:
    p = np.tile([0.2, 0.8], (60, 1))
    found = estimate_accuracy(p, confidence=0.95)
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx(tuple(np.array(stats.binom(60, 0.8).interval(0.95)) / 60))


def test_the_expected_auc_equals_the_sum_over_all_pairs() -> None:
    s = np.array([0.1, 0.4, 0.4, 0.7, 0.9, 0.9])
    won = total = 0.0
    for i, positive in enumerate(s):
        for j, other in enumerate(s):
            if i != j:
                weight = positive * (1 - other)
                total += weight
                won += weight * (0.5 if positive == other else float(positive > other))
    assert expected_auc(np.stack([1 - s, s], axis=1)) == pytest.approx(won / total)


def test_three_classes_have_no_auc_and_one_row_has_an_estimate() -> None:
    p, _ = drawn(np.random.default_rng(0), 1, classes=3)
    found = estimate_performance("probabilities", p)
    assert [one.metric for one in found] == ["accuracy", "macro_f1", "log_loss"]
    assert (found[0].low, found[0].high) == (0, 1)


def test_what_cannot_be_estimated_is_said() -> None:
    (regression,) = estimate_performance("value", np.zeros(5))
    assert regression.value is None and "a second model that predicts errors" in (regression.reason or "")
    assert all(
        one.reason == "not estimated: there are no rows" for one in estimate_performance("probabilities", np.zeros((0, 2)))
    )
    assert [one.rows for one in estimate_performance("probabilities", [])] == [0, 0, 0]
    certain = {one.metric: one for one in estimate_performance("probabilities", np.tile([1.0, 0.0], (9, 1)))}
    assert certain["auc"].value is None and certain["auc"].reason == "not estimated: all rows are of one class"
    assert certain["accuracy"].value == 1


def test_rows_with_nan_are_left_out_and_other_numbers_are_an_error() -> None:
    p = np.array([[0.2, 0.8], [np.nan, np.nan]])
    assert estimate_performance("probabilities", p)[0].rows == 1
    with pytest.raises(DataError, match="not class probabilities"):
        estimate_performance("probabilities", np.array([[3.0, -2.0]]))


def test_past_estimates_are_checked_against_truths() -> None:
    estimates = [Estimate(metric="accuracy", rows=50, value=0.9, low=0.85, high=0.95) for _ in range(20)]
    good = check_estimates(estimates, [0.88] * 19 + [0.5])
    assert good.trustworthy and good.inside == 0.95 and good.windows == 20
    bad = check_estimates(estimates, [0.7] * 20)
    assert bad.trustworthy is False and bad.bias == pytest.approx(0.2)
    assert "0 % of 20" in bad.sentence and "do not rely" in bad.sentence


def test_windows_without_truths_are_not_counted() -> None:
    estimates = [Estimate(metric="accuracy", rows=50, value=0.9, low=0.85, high=0.95)] * 2
    assert check_estimates(estimates, [None, 0.9]).windows == 1
    nothing = check_estimates(estimates, [None, float("nan")])
    assert nothing.trustworthy is None and "cannot be checked" in nothing.sentence
    with pytest.raises(DataError, match="2 estimates of accuracy and 1 truths"):
        check_estimates(estimates, [0.9])
