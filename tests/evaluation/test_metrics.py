"""Metrics against numbers worked by hand and against scikit-learn; outputs that cannot be scored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headrace.errors import ExportError, TrainingError
from headrace.evaluation.metrics import (
    Evaluation,
    as_values,
    before_scaling,
    interval_scores,
    score_classification,
    score_regression,
)

LABELS = ["cat", "dog", "owl"]
Y = np.array([0, 0, 1, 1, 2])
P = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])


def test_classification_metrics_agree_with_numbers_worked_by_hand():
    found = score_classification(Y, P, LABELS)
    assert found.metrics["accuracy"] == pytest.approx(4 / 5)
    # cat: precision 1, recall 1/2; dog: 2/3 and 1; owl: 1 and 1
    assert found.metrics["macro_f1"] == pytest.approx((2 / 3 + 4 / 5 + 1) / 3)
    assert found.metrics["log_loss"] == pytest.approx(-np.mean(np.log([0.8, 0.3, 0.8, 0.7, 0.8])))
    assert found.metrics["auc"] == pytest.approx(1.0)  # in every column the own class ranks highest
    assert found.confusion == [[1, 1, 0], [0, 2, 0], [0, 0, 1]]
    assert [(c.label, c.precision, c.recall, c.support) for c in found.classes] == [
        ("cat", 1.0, 0.5, 2),
        ("dog", pytest.approx(2 / 3), 1.0, 2),
        ("owl", 1.0, 1.0, 1),
    ]


def test_binary_auc_counts_pairs_in_the_right_order():
    y = np.array([0, 0, 1, 1, 1])
    score = np.array([0.1, 0.6, 0.6, 0.4, 0.9])
    # six pairs: four in order, one tied (half), one reversed
    assert score_classification(y, np.stack([1 - score, score], axis=1), ["no", "yes"]).metrics["auc"] == pytest.approx(4.5 / 6)


def test_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy():
    found = score_classification(Y, P, LABELS)
    # bins of 1/15: 0.6 alone (wrong), 0.7 alone (right), 0.8 three times (right); 0.6 and 0.8 are edges of bins
    assert found.calibration_error == pytest.approx((0.6 + 0.3 + 3 * 0.2) / 5)
    assert sum(b.rows for b in found.calibration) == 5


def test_a_class_without_test_rows_is_left_out_with_a_note():
    found = score_classification(np.array([0, 1, 0, 1]), P[[0, 2, 1, 3]], LABELS)
    assert "owl" in found.notes[0]
    assert found.metrics["auc"] == pytest.approx(1.0)
    assert found.classes[2].recall is None
    assert found.classes[2].support == 0
    assert np.isfinite(found.metrics["log_loss"])


def test_test_rows_of_one_class_leave_auc_out():
    found = score_classification(np.zeros(2, dtype=int), P[:2], LABELS)
    assert "auc" not in found.metrics
    assert any("auc is undefined" in note for note in found.notes)


def test_regression_metrics_agree_with_numbers_worked_by_hand():
    found = score_regression(np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 3.0, 3.0, 4.0]))
    assert found.metrics == {"mae": 0.75, "rmse": pytest.approx(np.sqrt(5 / 4)), "r2": pytest.approx(1 - 5 / 14)}
    assert found.residual_quantiles["0.5"] == 0.0


def test_intervals_are_scored_by_coverage_and_width():
    y = np.array([1.0, 2.0, 3.0, 6.0])
    outputs = np.array([[1.0, 0.0, 2.0], [3.0, 2.0, 4.0], [3.0, 3.5, 4.0], [4.0, 1.0, 5.0]])
    found = score_regression(y, outputs, {"by": np.array(["x", "x", "z", "z"])}, interval=0.9)
    assert (found.metrics["mae"], found.metrics["coverage"], found.metrics["interval_width"]) == (0.75, 0.5, 8.5 / 4)
    assert [s.coverage for s in found.slices] == [1.0, 0.0]
    assert found.interval == 0.9
    assert interval_scores("coverage", y, outputs).tolist() == [1, 1, 0, 0]
    with pytest.raises(ExportError, match="have no intervals"):
        interval_scores("coverage", y, outputs[:, 0])


def test_a_model_without_intervals_is_compared_with_one_that_has_them():
    assert as_values(np.array([[1.0, 0.0, 2.0]]), 1).tolist() == as_values(np.array([1.0]), 1).tolist()
    with pytest.raises(ExportError, match="NaN"):
        as_values(np.array([[1.0, np.nan, 2.0]]), 1)


def test_the_calibration_error_before_the_temperature_is_that_of_the_plain_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (200, 3))
    y = rng.integers(0, 3, 200)
    softmax = [np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (logits, logits / 2.5)]
    plain, scaled = (score_classification(y, p, LABELS) for p in softmax)
    found = before_scaling(scaled, y, softmax[1], 2.5)
    assert found.calibration_error_before == pytest.approx(plain.calibration_error)
    assert found.metrics["calibration_error"] == scaled.calibration_error != plain.calibration_error


def test_slices_have_the_error_and_its_direction():
    found = score_regression(
        np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 3.0, 3.0, 4.0]), {"by": np.array(["x", "x", "", "2"])}
    )
    assert [(s.value, s.rows, s.mae, s.bias) for s in found.slices] == [
        ("2", 1, 2.0, -2.0),
        ("(none)", 1, 0.0, 0.0),
        ("x", 2, 0.5, 0.5),
    ]


def test_slices_of_many_numbers_become_fifths_and_of_many_words_the_most_frequent():
    y = np.arange(100.0)
    words = np.array([f"w{i // 4:02}" for i in range(100)])
    found = score_regression(y, y + 1, {"number": np.append(y[:-1], np.nan), "word": words})
    numbers = [s for s in found.slices if s.column == "number"]
    assert sum(s.rows for s in numbers) == 100
    assert len(numbers) == 6
    assert numbers[-1].value == "(none)"
    others = [s for s in found.slices if s.column == "word"][-1]
    assert (others.value, others.rows) == ("(5 others)", 20)


def test_a_target_that_does_not_vary_leaves_r2_out():
    found = score_regression(np.ones(3), np.array([1.0, 2.0, 1.0]))
    assert "r2" not in found.metrics
    assert "r2 is undefined" in found.notes[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused_with_their_number(bad):
    with pytest.raises(ExportError, match="2 of 5 rows, first for row 1"):
        score_classification(Y, np.where(np.arange(5)[:, None] % 3 == 1, bad, P), LABELS)
    with pytest.raises(ExportError, match="1 of 3 rows"):
        score_regression(np.ones(3), np.array([1.0, bad, 2.0]))


def test_logits_are_refused_as_probabilities():
    with pytest.raises(ExportError, match="softmax"):
        score_classification(Y, P * 3, LABELS)


def test_zero_rows_and_unknown_classes_are_refused():
    with pytest.raises(TrainingError, match="no test rows"):
        score_classification(np.zeros(0, dtype=int), np.zeros((0, 3)), LABELS)
    with pytest.raises(TrainingError, match="no test rows"):
        score_regression(np.zeros(0), np.zeros(0))
    with pytest.raises(TrainingError, match="class index 3"):
        score_classification(np.array([0, 3]), P[:2], LABELS)
    with pytest.raises(ExportError, match="2 labels"):
        score_classification(Y, P, LABELS[:2])
    with pytest.raises(TrainingError, match="1 of 2 true values"):
        score_regression(np.array([1.0, np.nan]), np.ones(2))


def test_metrics_agree_with_scikit_learn_on_random_rows():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 200), rng.dirichlet(np.ones(3), 200)
    found = score_classification(y, p, LABELS).metrics
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(y, p))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(y, p.argmax(1), average="macro"))


def test_an_evaluation_survives_json():
    for found in (
        score_classification(Y, P, LABELS, {"by": np.array(list("aabbc"))}),
        score_regression(np.zeros(2), np.ones(2)),
        score_regression(np.zeros(2), np.ones((2, 3)), interval=0.5),
    ):
        assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
