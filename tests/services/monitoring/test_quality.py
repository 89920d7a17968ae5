"""Quality by true answers, estimates beside them, and the policy of retraining on blocks of true answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.recipe.monitor import MonitorConfig, RetrainConfig
from headrace.runtime.contract import Contract
from headrace.services.feedback_store import Joined
from headrace.services.monitoring.quality import (
    BLOCK,
    Scored,
    estimates_beside_truths,
    estimates_of,
    quality_of,
    scored_by_truths,
)
from headrace.services.monitoring.worsening import compare_blocks, mark_trained
from headrace.serving.samples import Window
from tests.monitoring.rows import contract

LABELS = ["a", "b", "c"]
METRICS = {"accuracy": 0.9, "rows": 1000.0, "mae": 2.0, "rmse": 3.0, "mae_x": 2.0, "rmse_x": 3.0, "mae_y": 20.0, "rmse_y": 30.0}
SETS = {"rows": 1000.0, "jaccard": 0.9, "hamming_loss": 0.05, "subset_accuracy": 0.8}


def pairs(answers: Sequence[Any], truths: Sequence[Any], first: int = 1) -> list[Joined]:
    joined = enumerate(zip(answers, truths, strict=True), first)
    return [Joined(0.0, "1", f"r{number}", 0, answer, truth, number) for number, (answer, truth) in joined]


def window(probabilities: list[Any], confidences: Any = None) -> Window:
    count = len(probabilities)
    none = np.full(count, np.nan) if confidences is None else np.array(confidences)
    return Window("m", "1", pd.DataFrame(), pd.DataFrame(), none, probabilities, np.ones(count), np.zeros(count), [()] * count)  # type: ignore[list-item]


def several_labels(**fields: Any) -> Contract:
    return contract(output="labels", labels=LABELS, **fields)


def test_several_labels_are_judged_by_the_gate_s_metric_where_rows_contribute_to_it() -> None:
    given = pairs([["a"], ["a", "b"], []], [["a"], ["a"], ["c"]])
    scores = {}
    for preferred in ("jaccard", "subset_accuracy", "hamming_loss", "micro_f1", None):
        (one,) = scored_by_truths(given, several_labels(), SETS, preferred)
        scores[preferred] = (one.metric, one.scores.round(3).tolist(), one.is_better_higher)
    assert scores["jaccard"] == scores["micro_f1"] == scores[None] == ("jaccard", [1.0, 0.5, 0.0], True)
    assert scores["subset_accuracy"] == ("subset_accuracy", [1.0, 0.0, 0.0], True)
    assert scores["hamming_loss"] == ("hamming_loss", [0.0, 0.333, 0.333], False)


def test_several_labels_that_are_wrong_have_fallen() -> None:
    good = pairs([["a"]] * 200, [["a"]] * 190 + [["b"]] * 10)
    bad = pairs([["a"]] * 200, [["a"]] * 60 + [["b"]] * 140)
    for given, fallen in ((good, False), (bad, True)):
        for metric in ("jaccard", "hamming_loss"):
            (one,) = scored_by_truths(given, several_labels(), SETS | {"hamming_loss": 0.05}, metric)
            assert quality_of(one, 0.05).has_fallen == fallen, metric


def test_each_of_several_values_has_a_quality_of_its_own() -> None:
    targets = contract(output="values", labels=None, targets=["x", "y"])
    rng = np.random.default_rng(0)
    truths = [{"x": float(rng.normal(0, 2.5)), "y": float(rng.normal(0, 250))} for _ in range(200)]
    given = pairs([{"x": 0.0, "y": 0.0}] * 200, truths)
    x, y = (quality_of(one, 0.025) for one in scored_by_truths(given, targets, METRICS, None))
    assert (x.metric, x.has_fallen) == ("mae_x", False) and (y.metric, y.has_fallen) == ("mae_y", True)


def test_answers_that_are_no_numbers_and_metrics_that_the_test_rows_lack_give_nothing() -> None:
    value = contract(output="value", labels=None)
    (one,) = scored_by_truths(pairs([1.0, "x", None], [3.0, 1.0, 1.0]), value, METRICS, None)
    assert one.scores.tolist() == [2.0]
    assert list(scored_by_truths(pairs([1.0], [3.0]), value, {}, None)) == []
    assert list(scored_by_truths(pairs(["t"], ["t"]), contract(output="text", labels=None), METRICS, None)) == []


def drawn(count: int, sharpness: float = 1.0) -> tuple[list[list[float]], list[str]]:
    """Probabilities of no and yes, and truths that are drawn with the probability to the power of `sharpness`."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 0.4, count)
    odds = (p / (1 - p)) ** sharpness
    return np.stack([1 - p, p], axis=1).round(6).tolist(), np.where(rng.random(count) < odds / (1 + odds), "yes", "no").tolist()


def test_the_gate_s_metric_is_estimated_first() -> None:
    found = estimates_of(contract(), window(drawn(300)[0]), "auc")
    assert [one.metric for one in found] == ["auc", "accuracy", "macro_f1", "log_loss"]
    assert estimates_of(several_labels(), window([[0.9, 0.2, 0.1]] * 60), "micro_f1")[0].metric == "micro_f1"


def test_rows_without_all_probabilities_give_the_accuracy_alone_and_numbers_give_the_reason() -> None:
    (accuracy,) = estimates_of(contract(), window([None] * 61, [0.9, 0.8] * 30 + [np.nan]), "auc")
    assert (accuracy.metric, accuracy.rows) == ("accuracy", 60) and accuracy.value == pytest.approx(0.85)
    (error,) = estimates_of(contract(output="value", labels=None), window([None] * 3), "mae")
    assert error.value is None and "a second model that predicts errors" in (error.reason or "")
    assert estimates_of(contract(), window([]), None) == []
    assert estimates_of(contract(output="text", labels=None), window([None]), None) == []


def test_few_rows_give_no_estimate_and_an_interval_has_its_estimate() -> None:
    sure = [0.999, *[0.001 / 9] * 9]
    ten = contract(labels=[str(digit) for digit in range(10)])
    few = estimates_of(ten, window([sure] * 6), "macro_f1")
    assert [one.value for one in few] == [None] * len(few) and few[0].reason == "not estimated: 6 rows, and it takes 50"
    for one in estimates_of(ten, window([sure] * 50), "macro_f1"):
        assert one.value is not None and one.low is not None and one.high is not None
        assert one.low <= one.value <= one.high, one


@pytest.mark.parametrize("damaged", ["x", [0.5], [2.0, -1.0], [0.5, None], {"no": 1.0}, [0.2, 0.2]])
def test_damaged_probabilities_are_left_out(damaged: Any) -> None:
    assert estimates_of(contract(), window([damaged, [0.2, 0.8]]), None)[0].rows == 1


def test_an_estimate_is_shown_beside_the_real_figure() -> None:
    p, truths = drawn(400)
    found = {one.metric: one for one in estimates_beside_truths(contract(), window(p), [None, *truths[1:]], "auc")}
    assert list(found) == ["auc", "accuracy", "macro_f1", "log_loss"]
    assert all(one.is_inside and one.rows == 399 for one in found.values()), found
    p, truths = drawn(400, sharpness=0.2)
    wrong = {one.metric: one for one in estimates_beside_truths(contract(), window(p), truths, None)}
    assert not wrong["accuracy"].is_inside and "do not rely on the estimate" in wrong["accuracy"].sentence
    assert estimates_beside_truths(contract(), window(p[:49]), truths[:49], None) == []
    strange = [*truths[:60], "maybe", 7, ["yes"]]
    assert estimates_beside_truths(contract(), window(p[:63]), strange, None)[0].rows == 60


def test_estimates_of_several_labels_stand_beside_the_real_figures() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(0.4, 0.8, (300, 3))
    truths = [[label for label, is_true in zip(LABELS, row, strict=True) if is_true] for row in rng.random(p.shape) < p]
    found = estimates_beside_truths(several_labels(), window(p.round(6).tolist()), truths, "micro_f1")
    assert [one.metric for one in found] == ["micro_f1", "hamming_loss", "macro_f1", "log_loss"]
    assert all(one.is_inside for one in found)


class Served:
    """True answers that come in blocks to versions of a model whose accuracy was 0.9 on 1,000 test rows."""

    def __init__(self, folder: Path) -> None:
        self.path, self.version, self.pairs, self.metrics = folder / "policy.json", "1", list[Joined](), dict(METRICS)
        self._number = 1

    def come(self, accuracy: float, blocks: int = 1, rows: int = BLOCK) -> None:
        for _ in range(blocks):
            right = round(rows * accuracy)
            self.pairs += pairs(["a"] * rows, ["a"] * right + ["b"] * (rows - right), self._number)
            self._number += rows

    def promote(self, accuracy: float) -> None:
        """Another version serves, which has this accuracy on the test rows."""
        self.version, self.metrics["accuracy"], self.pairs = str(int(self.version) + 1), accuracy, []

    def compare(self, **retrain: Any) -> list[str]:
        def score(some: Sequence[Any]) -> list[Scored]:
            return list(scored_by_truths(some, contract(labels=["a", "b"]), self.metrics, None))

        monitor = MonitorConfig(retrain=RetrainConfig(**retrain))
        return compare_blocks(self.version, self.pairs, score, monitor, self.path)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


def test_a_worse_block_is_a_reason_until_another_block_says_otherwise(served: Served) -> None:
    assert served.compare() == []
    served.come(0.9, blocks=3)
    assert served.compare() == []
    served.come(0.7)
    (reason,) = served.compare()
    assert reason.startswith("accuracy: the error 0.3 is more than 5% above the reference 0.1") and "look 4" in reason
    assert served.compare() == [reason], "the same answers count once"
    served.come(0.7, rows=BLOCK - 1)
    assert served.compare() == [reason], "an incomplete block waits"
    served.come(1.0, rows=1)
    served.come(0.9)
    assert served.compare() == []


def test_the_tolerance_is_that_of_the_recipe(served: Served) -> None:
    served.come(0.8)
    assert served.compare(tolerance=2.0) == []


def test_after_a_training_the_policy_waits_and_an_error_that_stays_becomes_the_reference(served: Served) -> None:
    reasons = []
    for _ in range(7):
        served.come(0.7)
        reasons.append(bool(served.compare()))
        if reasons[-1]:
            mark_trained(served.path)  # and the gate refuses the candidate
            assert served.compare() == [], "the reason has led to a training"
    assert reasons == [True, True, False, True, False, False, False]


def test_a_training_that_is_promoted_is_judged_by_its_own_test_rows(served: Served) -> None:
    served.come(0.7)
    assert served.compare() != []
    mark_trained(served.path)
    served.promote(0.95)
    assert served.compare() == [], "no true answer to the new version yet"
    served.come(0.95)
    assert served.compare() == []
    served.come(0.88)
    (reason,) = served.compare()
    assert "reference 0.05" in reason


def test_another_version_begins_with_its_own_test_rows(served: Served) -> None:
    served.come(0.7)
    assert served.compare() != []
    served.promote(0.7)
    assert served.compare() == []
    served.come(0.7)
    assert served.compare() == []


def test_a_damaged_state_begins_again(served: Served) -> None:
    served.come(0.7)
    first = served.compare()
    for content in ("{", '{"schema_version": 1}', '{"schema_version": 9}', "[]"):
        served.path.write_text(content)
        assert served.compare() == first
