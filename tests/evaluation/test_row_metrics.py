"""Row-wise metrics, and the gate's comparison by them: hand-worked numbers, scipy's answers, the rate of false promotions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from headrace.errors import ExportError, TrainingError
from headrace.evaluation import paired_tests
from headrace.evaluation.gate import Comparison, compare, compare_rows
from headrace.evaluation.metrics import Evaluation
from headrace.evaluation.plots import draw_evaluation
from headrace.evaluation.row_metrics import as_contributions, linear_contributions, ratio_of_sums, score_rows
from headrace.recipe.gate import BeatChampion
from headrace.task_types.base import TaskType

BITS = np.array([[8.0, 4.0], [3.0, 1.0], [1.0, 5.0]])


def contest(candidate: Any, champion: Any, better: str = "lower", seed: int = 0, **beat: float) -> Comparison:
    return compare_rows(candidate, champion, beat=BeatChampion(metric="bits", **beat), better=better, seed=seed)  # type: ignore[arg-type]


def passages(rng: np.random.Generator, rows: int, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two models on passages of uneven size, the first better by `gain` bits a character."""
    characters = rng.integers(200, 1500, rows).astype(float)
    base = 2.0 + 0.2 * rng.normal(size=rows)
    noise = 0.1 * rng.normal(size=(2, rows))
    return tuple(np.stack([(base + e) * characters, characters], axis=1) for e in (noise[0] - gain, noise[1]))


def test_a_metric_is_the_mean_of_scores_or_the_ratio_of_sums():
    assert ratio_of_sums(as_contributions(np.array([1.0, 2.0, 6.0]))) == 3.0
    assert ratio_of_sums(as_contributions(BITS)) == pytest.approx(12 / 10)


def test_linear_contributions_have_the_metric_as_mean_and_follow_a_heavier_row():
    parts = linear_contributions(BITS)
    assert parts.mean() == pytest.approx(1.2)
    step = 1e-6
    moved = ratio_of_sums(BITS * np.array([[1 + step], [1], [1]]))
    assert (moved - 1.2) / step == pytest.approx((parts[0] - 1.2) / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (np.zeros((2, 3)), "shape"),
        (np.array([1.0, np.nan]), "1 of 2 rows"),
        (np.array([[1.0, 0.0], [1.0, 2.0]]), "first row 0"),
    ],
)
def test_invalid_scores_are_refused(parts, message):
    with pytest.raises(ExportError, match=message):
        as_contributions(parts)
    with pytest.raises(TrainingError, match="no test rows"):
        as_contributions(np.zeros(0))


def test_an_evaluation_has_slices_with_errors_and_survives_json_and_is_drawn(tmp_path):
    found = score_rows({"bits": BITS, "rouge": np.array([0.1, 0.2, 0.6])}, {"work": np.array(["a", "a", "b"])})
    assert found.metrics == pytest.approx({"bits": 1.2, "rouge": 0.3})
    assert [(s.value, s.rows, s.score) for s in found.slices] == [("a", 2, 11 / 5), ("b", 1, 0.2)]
    assert found.slices[0].standard_error is not None and found.slices[1].standard_error is None
    assert Evaluation.from_dict(found.to_dict()) == found
    written = {path.name for path in draw_evaluation(found, np.zeros(3), BITS, "tiny", tmp_path)}
    assert written == {"slices.csv", "slices.png"}
    assert (tmp_path / "slices.csv").read_text().splitlines()[0] == "slice,bits,rows"


def test_the_bound_of_plain_scores_is_the_one_of_row_wise_differences():
    rng = np.random.default_rng(3)
    y, a, b = rng.normal(size=(3, 200))
    by_rows = contest(np.abs(a - y), np.abs(b - y))
    by_values = compare(y, a, b, beat=BeatChampion(metric="mae"), better="lower", seed=0)
    assert (by_rows.improvement, by_rows.lower, by_rows.p_value) == pytest.approx(
        (by_values.improvement, by_values.lower, by_values.p_value)
    )


def test_the_bound_on_a_quotient_agrees_with_scipys_bootstrap_of_the_quotient_itself():
    ours, theirs = passages(np.random.default_rng(5), 300, gain=0.02)

    def gain(a: Any, b: Any, w: Any, axis: int) -> Any:
        return (b.sum(axis=axis) - a.sum(axis=axis)) / w.sum(axis=axis)

    wanted = stats.bootstrap(
        (ours[:, 0], theirs[:, 0], ours[:, 1]), gain, paired=True, confidence_level=0.9, rng=np.random.default_rng(0)
    ).confidence_interval
    found = contest(ours, theirs)
    assert found.lower == pytest.approx(wanted.low, abs=1e-3) and found.upper == pytest.approx(wanted.high, abs=1e-3)
    assert found.improvement == pytest.approx(ratio_of_sums(theirs) - ratio_of_sums(ours))


def test_a_better_candidate_is_promoted_and_a_worse_one_is_not_in_both_directions():
    good, bad = passages(np.random.default_rng(1), 400, gain=0.05)
    assert contest(good, bad).promoted and not contest(bad, good).promoted
    assert contest(bad, good, "higher").promoted and not contest(good, bad, "higher").promoted
    assert not contest(good, bad, margin=0.2).promoted
    assert not contest(good, good.copy()).promoted
    assert not contest(good[:1], bad[:1]).promoted


def test_equal_models_are_promoted_no_more_often_than_the_level_allows(monkeypatch):
    monkeypatch.setattr(paired_tests, "RESAMPLES", 499)
    rng, trials = np.random.default_rng(11), 250
    promoted = sum(contest(*passages(rng, 100), seed=i).promoted for i in range(trials))
    assert promoted <= int(stats.binom.ppf(1 - 1e-4, trials, 0.05))


def test_models_measured_on_other_rows_are_not_compared():
    good, bad = passages(np.random.default_rng(1), 20)
    with pytest.raises(ExportError, match=r"20 rows and the champion on 19"):
        contest(good, bad[1:])
    with pytest.raises(ExportError, match="with other weights"):
        contest(good, bad * np.array([1, 2]))
    with pytest.raises(ExportError, match="champion"):
        contest(good, bad * np.nan)


def test_a_task_type_with_a_metric_without_scores_is_an_error():
    class Bare(TaskType):
        pass

    Bare.__abstractmethods__ = frozenset()
    with pytest.raises(TypeError, match="has a metric 'bits'"):
        Bare().row_scores("bits", np.zeros(1), np.zeros(1))
