"""The gate, compared with tables worked by hand and independent formulas; its rate of false promotions."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from headrace.errors import ExportError, HeadraceError, RecipeError, TrainingError
from headrace.evaluation import paired_tests
from headrace.evaluation.gate import Comparison, Verdict, align_classes, check_gate, compare
from headrace.recipe.gate import BeatChampion, GateConfig
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION

Array = NDArray[Any]
LEVEL = 0.95


def answers(right: list[bool] | Array, sure: float = 0.9) -> Array:
    """Probabilities of two classes for rows whose true class is 0."""
    p = np.where(np.asarray(right), sure, 1 - sure)
    return np.stack([p, 1 - p], axis=1)


def table(both: int, won: int, lost: int, neither: int) -> tuple[Array, Array, Array]:
    """Truth, candidate and champion with these counts of right and wrong rows."""
    candidate = [True] * (both + won) + [False] * (lost + neither)
    champion = [True] * both + [False] * won + [True] * lost + [False] * neither
    return np.zeros(len(candidate), dtype=int), answers(candidate), answers(champion)


def contest(metric: str, y: Array, candidate: Array, champion: Array, seed: int = 0, **beat: float) -> Comparison:
    better = (CLASSIFICATION | REGRESSION)[metric]
    return compare(y, candidate, champion, beat=BeatChampion(metric=metric, **beat), better=better, seed=seed)


# -- accuracy: exact McNemar, Tango's score interval -------------------------------------------------------------------------


def test_mcnemar_p_value_agrees_with_one_worked_by_hand():
    found = contest("accuracy", *table(both=80, won=8, lost=2, neither=10))
    # P(X >= 8) for ten fair coins: (45 + 10 + 1) / 1024
    assert found.p_value == pytest.approx(56 / 1024)
    assert (found.won, found.lost, found.rows) == (8, 2, 100)
    assert found.improvement == pytest.approx(0.06)
    assert not found.promoted
    assert "p = 0.0547" in found.sentence


@pytest.mark.parametrize(("won", "lost", "promoted"), [(9, 1, True), (5, 0, True), (4, 0, False), (1, 9, False), (0, 0, False)])
def test_a_candidate_is_promoted_only_when_the_discordant_rows_show_it(won, lost, promoted):
    assert contest("accuracy", *table(50, won, lost, 5)).promoted is promoted


def test_the_bound_of_mcnemar_is_above_zero_exactly_when_its_p_value_is_below_the_level():
    for won, lost in itertools.product(range(25), repeat=2):
        bound = paired_tests.mcnemar(won, lost, 100, LEVEL)
        assert (bound.lower > 0) == (bound.p_value < 1 - LEVEL), (won, lost)
        assert bound.p_value == pytest.approx(
            stats.binomtest(won, won + lost, alternative="greater").pvalue if won + lost else 1
        )


def test_the_bounds_of_mcnemar_are_where_the_exact_binomial_test_turns():
    won, lost, rows = 21, 12, 400
    bound = paired_tests.mcnemar(won, lost, rows, LEVEL)
    share_low, share_high = ((1 + edge * rows / (won + lost)) / 2 for edge in (bound.lower, bound.upper))
    assert stats.binomtest(won, won + lost, share_low, alternative="greater").pvalue == pytest.approx(1 - LEVEL)
    assert stats.binomtest(won, won + lost, share_high, alternative="less").pvalue == pytest.approx(1 - LEVEL)


def test_tango_score_agrees_with_a_likelihood_maximised_numerically():
    won, lost, rows, delta = 12, 5, 80, -0.03

    def loss(log_lost: float) -> float:
        """Negative log-likelihood of the trinomial with P(won) - P(lost) = delta."""
        q = math.exp(log_lost)
        cells = np.array([q + delta, q, 1 - 2 * q - delta])
        return -float(np.array([won, lost, rows - won - lost]) @ np.log(cells)) if (cells > 0).all() else math.inf

    q = math.exp(
        optimize.minimize_scalar(loss, bounds=(math.log(0.0301), math.log(0.5)), method="bounded", options={"xatol": 1e-12}).x
    )
    z = (won - lost - rows * delta) / math.sqrt(rows * (2 * q + delta - delta**2))
    bound = paired_tests.tango(won, lost, rows, float(stats.norm.cdf(z)))
    assert bound.lower == pytest.approx(delta, abs=1e-5)


def test_tango_at_no_difference_is_the_asymptotic_mcnemar():
    won, lost = 30, 14
    z = (won - lost) / math.sqrt(won + lost)
    assert paired_tests.tango(won, lost, 500, float(stats.norm.cdf(z))).lower == pytest.approx(0, abs=1e-9)


def test_a_margin_that_allows_a_loss_is_not_met_by_a_few_rows_that_all_agree():
    y, candidate, _ = table(both=50, won=0, lost=0, neither=0)
    close = answers([True] * 50, sure=0.8)
    assert not contest("accuracy", y, candidate, close, margin=-0.01).promoted
    y, candidate, _ = table(both=1000, won=0, lost=0, neither=0)
    assert contest("accuracy", y, candidate, answers([True] * 1000, sure=0.8), margin=-0.01).promoted


def test_a_margin_asks_for_more_than_being_better():
    rows = table(both=900, won=40, lost=10, neither=50)
    assert contest("accuracy", *rows).promoted
    assert contest("accuracy", *rows, margin=0.01).promoted
    assert not contest("accuracy", *rows, margin=0.025).promoted


# -- the other bounds --------------------------------------------------------------------------------------------------------


def test_delong_agrees_with_variances_from_all_pairs():
    rng = np.random.default_rng(3)
    y = np.array([0] * 40 + [1] * 25)
    scores = [np.round(1 / (1 + np.exp(-(y + rng.normal(size=65)))), 2) for _ in range(2)]  # rounded: there are ties
    wins = [(s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0]) for s in scores]
    difference = wins[0] - wins[1]  # (positives, negatives)
    v = np.array([difference.mean(axis=1).var(ddof=1) / 25, difference.mean(axis=0).var(ddof=1) / 40])
    freedom = v.sum() ** 2 / (v[0] ** 2 / 24 + v[1] ** 2 / 39)
    found = contest("auc", y, *(np.stack([1 - s, s], axis=1) for s in scores))
    assert found.improvement == pytest.approx(difference.mean())
    assert found.lower == pytest.approx(difference.mean() - stats.t.ppf(LEVEL, freedom) * math.sqrt(v.sum()))


def test_delong_of_several_classes_agrees_with_a_bootstrap_within_each_class():
    rng = np.random.default_rng(5)
    y, candidate, champion = null_rows(rng, 400, 3)
    found = contest("auc", y, candidate, champion)

    def gain(rows: Array) -> float:
        areas = []
        for p in (candidate[rows], champion[rows]):
            for k in range(3):
                own, other = p[y[rows] == k, k], p[y[rows] != k, k]
                areas.append(stats.mannwhitneyu(own, other).statistic / len(own) / len(other))
        return float(np.mean(areas[:3]) - np.mean(areas[3:]))

    groups = [np.flatnonzero(y == k) for k in range(3)]
    spread = np.std([gain(np.concatenate([rng.choice(g, len(g)) for g in groups])) for _ in range(400)])
    assert found.improvement == pytest.approx(gain(np.arange(400)))
    # the standard deviation of 400 draws is known to about 1 / sqrt(2 · 400) = 3.5 %: four times that is allowed
    assert (found.improvement - found.lower) / 1.65 == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(("rows", "promoted"), [(4, False), (60, True)])
def test_a_perfect_ranking_beats_a_constant_one_given_enough_rows(rows, promoted):
    y = np.arange(rows) % 2
    perfect, constant = np.stack([0.9 - 0.8 * y, 0.1 + 0.8 * y], axis=1), np.full((rows, 2), 0.5)
    found = contest("auc", y, perfect, constant)
    assert found.improvement == pytest.approx(0.5)
    assert found.promoted is promoted
    assert not contest("auc", y, constant, perfect).promoted


def test_the_skewness_correction_agrees_with_the_bca_bootstrap():
    d = np.random.default_rng(1).exponential(size=400)
    corrected = paired_tests.hall(d, LEVEL)
    reference = stats.bootstrap((d,), np.mean, confidence_level=0.9, n_resamples=9_999, rng=np.random.default_rng(2))
    plain = d.mean() + stats.norm.ppf(LEVEL) * d.std() / 20
    assert corrected.lower == pytest.approx(reference.confidence_interval.low, abs=0.01)
    assert corrected.upper == pytest.approx(reference.confidence_interval.high, abs=0.01)
    assert corrected.upper > plain  # a long tail to the right moves both bounds to the right


def test_the_skewness_correction_undoes_halls_polynomial():
    d = np.random.default_rng(1).exponential(size=50)
    skew = float(stats.skew(d)) * (49 / 50) ** 1.5  # with the divisor n - 1 in the standard deviation
    for level, edge in ((LEVEL, paired_tests.hall(d, LEVEL).lower), (1 - LEVEL, paired_tests.hall(d, LEVEL).upper)):
        t = (d.mean() - edge) / d.std(ddof=1) * math.sqrt(50)
        g = t + skew * (t**2 / 3 + 1 / 6) / math.sqrt(50) + skew**2 * t**3 / (27 * 50)
        assert g == pytest.approx(stats.t.ppf(level, 49))


def test_the_swap_test_agrees_with_counting_every_exchange():
    d = np.array([3.0, -1.0, 2.0, 0.5, 1.5, -0.5, 2.5, 1.0])
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = float(((signs @ d) >= d.sum()).mean())
    found = paired_tests.swap_test(d, np.random.default_rng(0))
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / paired_tests.RESAMPLES))


def test_macro_f1_counts_agree_with_resampling_rows_one_by_one():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(2)
    y, candidate, champion = null_rows(rng, 150, 3)
    ours, theirs = candidate.argmax(1), champion.argmax(1)
    rows = [rng.integers(150, size=150) for _ in range(600)]
    gains = [f1_score(y[i], ours[i], average="macro") - f1_score(y[i], theirs[i], average="macro") for i in rows]
    found = contest("macro_f1", y, candidate, champion)
    assert found.upper == pytest.approx(np.quantile(gains, LEVEL), abs=5 * np.std(gains) / math.sqrt(600) / 0.5)
    assert found.improvement == pytest.approx(f1_score(y, ours, average="macro") - f1_score(y, theirs, average="macro"))


@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_the_formula_for_many_rows_agrees_with_resampling(metric, monkeypatch):
    rng = np.random.default_rng(4)
    y = rng.normal(size=2_000) * 3
    candidate, champion = y + rng.normal(size=2_000), y + 1.1 * rng.normal(size=2_000)
    resampled = contest(metric, y, candidate, champion)
    monkeypatch.setattr(paired_tests, "LARGE", 100)
    formula = contest(metric, y, candidate, champion)
    assert "bootstrap" in resampled.method
    assert "delta method" in formula.method
    assert formula.promoted is resampled.promoted is True
    width = resampled.upper - resampled.lower
    assert formula.lower == pytest.approx(resampled.lower, abs=0.05 * width)
    assert formula.upper == pytest.approx(resampled.upper, abs=0.05 * width)


# -- the promise -------------------------------------------------------------------------------------------------------------


def null_rows(rng: np.random.Generator, rows: int, classes: int) -> tuple[Array, Array, Array]:
    """Two models that differ by chance only: the same signal, each with separate noise."""
    y = rng.integers(classes, size=rows)
    signal = rng.normal(size=(rows, classes)) + 2 * np.eye(classes)[y]
    logits = [2 * (signal + 0.5 * rng.normal(size=signal.shape)) for _ in range(2)]
    exps = [np.exp(z - z.max(axis=1, keepdims=True)) for z in logits]
    return y, *(e / e.sum(axis=1, keepdims=True) for e in exps)


def at_most(level: float, trials: int) -> int:
    """A count that a rate of `level` exceeds once in 10,000 series of `trials`."""
    return int(stats.binom.ppf(1 - 1e-4, trials, level))


@pytest.mark.parametrize("metric", CLASSIFICATION)
def test_equal_classifiers_are_promoted_no_more_often_than_the_level_allows(metric, monkeypatch):
    monkeypatch.setattr(paired_tests, "RESAMPLES", 499)
    rng, trials = np.random.default_rng(11), 250
    promoted = sum(contest(metric, *null_rows(rng, 150, 3), seed=i).promoted for i in range(trials))
    assert promoted <= at_most(1 - LEVEL, trials)


@pytest.mark.parametrize("metric", REGRESSION)
def test_equal_regressors_with_wild_errors_are_promoted_no_more_often_than_the_level_allows(metric, monkeypatch):
    monkeypatch.setattr(paired_tests, "RESAMPLES", 499)
    rng, trials = np.random.default_rng(12), 250
    promoted = 0
    for i in range(trials):
        y, *errors = (rng.normal(size=100), *np.exp(2 * rng.normal(size=(2, 100))))
        promoted += contest(metric, y, y + errors[0], y + errors[1], seed=i).promoted
    assert promoted <= at_most(1 - LEVEL, trials)


def test_the_bound_on_the_mean_error_has_its_nominal_coverage(monkeypatch):
    """The true improvement is known: E|e| of a normal error is its scale times sqrt(2/pi)."""
    monkeypatch.setattr(paired_tests, "RESAMPLES", 499)
    rng, trials, truth = np.random.default_rng(13), 300, 0.2 * math.sqrt(2 / math.pi)
    below = 0
    for i in range(trials):
        y, a, b = rng.normal(size=(3, 200))
        below += contest("mae", y, y + a, y + 1.2 * b, seed=i, margin=-1.0).lower <= truth
    # between the two limits that a true rate of 95 % leaves once in 10,000 series, less 1 % for the resampling itself
    assert stats.binom.ppf(1e-4, trials, LEVEL - 0.01) <= below <= stats.binom.ppf(1 - 1e-4, trials, LEVEL + 0.01)


@pytest.mark.parametrize("metric", CLASSIFICATION | REGRESSION)
def test_a_clearly_better_candidate_is_promoted_and_a_worse_one_is_not(metric):
    rng = np.random.default_rng(6)
    if metric in CLASSIFICATION:
        y = rng.integers(3, size=600)
        good, bad = (np.exp(4 * (np.eye(3)[y] + s * rng.normal(size=(600, 3)))) for s in (0.4, 1.0))
        good, bad = (e / e.sum(axis=1, keepdims=True) for e in (good, bad))
    else:
        y = rng.normal(size=600)
        good, bad = (y + s * rng.normal(size=600) for s in (0.2, 0.5))
    better, worse = contest(metric, y, good, bad), contest(metric, y, bad, good)
    assert better.promoted and not worse.promoted
    assert better.improvement == pytest.approx(-worse.improvement)
    assert better.lower < better.improvement < better.upper


# -- what can go wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", CLASSIFICATION | REGRESSION)
def test_identical_outputs_are_no_evidence(metric):
    y = np.array([0, 1, 0, 1])
    outputs = answers([True, False, True, True]) if metric in CLASSIFICATION else np.arange(4.0)
    found = contest(metric, y, outputs, outputs.copy())
    assert not found.promoted
    assert "identical" in found.sentence


@pytest.mark.parametrize("metric", CLASSIFICATION | REGRESSION)
def test_one_row_gives_no_bound(metric):
    y = np.zeros(1, dtype=int)
    outputs = (answers([True]), answers([False])) if metric in CLASSIFICATION else (np.zeros(1), np.ones(1))
    assert not contest(metric, y, *outputs).promoted


def test_the_same_seed_gives_the_same_result_and_arrays_are_unchanged():
    rng = np.random.default_rng(8)
    y, a, b = rng.normal(size=(3, 300))
    copies = a.copy(), b.copy()
    first = contest("mae", y, a, b, seed=4)
    assert first == contest("mae", y, a, b, seed=4)
    assert first.lower != contest("mae", y, a, b, seed=5).lower
    assert np.array_equal(a, copies[0]) and np.array_equal(b, copies[1])


def test_outputs_that_cannot_be_compared_are_refused():
    y = np.array([0, 1])
    fine, broken = answers([True, False]), np.full((2, 2), np.nan)
    with pytest.raises(ExportError, match=r"(?s)outputs of the champion.*2 of 2 rows"):
        contest("accuracy", y, fine, broken)
    with pytest.raises(ExportError, match="outputs of the candidate"):
        contest("accuracy", y, broken, fine)
    with pytest.raises(ExportError, match="2 classes and the champion 3"):
        contest("accuracy", y, fine, np.full((2, 3), 1 / 3))
    with pytest.raises(TrainingError, match="no test rows"):
        contest("mae", np.zeros(0), np.zeros(0), np.zeros(0))
    with pytest.raises(RecipeError, match="accuracy"):
        compare(y, fine, fine, beat=BeatChampion(metric="acuracy"), better="higher", seed=0)


def test_classes_are_aligned():
    p = np.array([[0.6, 0.3, 0.1], [0.0, 0.0, 1.0]])
    assert align_classes(p, ["b", "a", "c"], ["a", "b", "c", "d"]).tolist() == [[0.3, 0.6, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0]]
    # "c" is gone: its share goes to the others, and a row that had nothing else is undecided
    assert align_classes(p, ["b", "a", "c"], ["a", "b"]) == pytest.approx(np.array([[1 / 3, 2 / 3], [0.5, 0.5]]))


def test_three_hundred_thousand_rows_stay_within_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    y, a, b = rng.normal(size=(3, 300_000))
    for metric in REGRESSION:
        tracemalloc.start()
        assert contest(metric, y, a, b).rows == 300_000
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 300e6


# -- the verdict -------------------------------------------------------------------------------------------------------------


def verdict(require: dict[str, str], metrics: dict[str, float], comparison: Comparison | None = None, **more: Any) -> Verdict:
    gate = GateConfig(require=require, beat_champion=BeatChampion(metric="accuracy"))
    return check_gate(gate, CLASSIFICATION, metrics, comparison, **more)


@pytest.mark.parametrize(
    ("bound", "value", "passed"),
    [
        (">= 0.95", 0.95, True),
        (">= 0.95", 0.9499, False),
        ("> 0.95", 0.95, False),
        ("<=0.95", 0.95, True),
        (" < 0.95", 0.95, False),
        (">= 0.95", math.nan, False),
        ("<= 0.95", math.nan, False),
        (">= -1e-3", 0.0, True),
    ],
)
def test_thresholds_follow_their_operators(bound, value, passed):
    assert verdict({"accuracy": bound}, {"accuracy": value}).passed is passed


def test_without_a_champion_the_thresholds_alone_decide():
    found = verdict({"accuracy": ">= 0.95"}, {"accuracy": 0.981})
    assert found.passed
    assert found.reasons == ["accuracy 0.981 >= 0.95: passed", "the model has no champion yet, so the thresholds alone decide"]


def test_both_the_thresholds_and_the_comparison_have_to_pass():
    won, lost = (contest("accuracy", *table(90, *counts, 0)) for counts in ((10, 0), (0, 10)))
    assert verdict({"accuracy": ">= 0.5"}, {"accuracy": 0.9}, won).passed
    assert not verdict({"accuracy": ">= 0.95"}, {"accuracy": 0.9}, won).passed
    refused = verdict({"accuracy": ">= 0.5"}, {"accuracy": 0.9}, lost)
    assert not refused.passed
    assert refused.reasons[0] == lost.sentence  # what failed comes first
    assert [check.passed for check in refused.checks] == [True, False]


def test_a_candidate_identical_to_the_champion_is_not_compared():
    worse = contest("accuracy", *table(90, 0, 10, 0))
    found = verdict({"accuracy": ">= 0.5"}, {"accuracy": 0.9}, worse, same_model=True)
    assert found.passed and found.same_model and found.comparison is None
    assert not verdict({"accuracy": ">= 0.95"}, {"accuracy": 0.9}, same_model=True).passed


def test_a_metric_that_is_missing_or_none_never_passes():
    assert not verdict({"auc": ">= 0"}, {}).passed
    assert not verdict({"auc": "<= 1"}, {"auc": None}).passed  # type: ignore[dict-item]


def test_an_undefined_metric_never_beats_the_champion():
    y = np.zeros(20, dtype=int)
    found = contest("auc", y, answers([True] * 20), answers([False] * 20))
    assert not found.promoted
    assert "undefined" in found.sentence


def test_a_threshold_on_an_unknown_metric_is_an_error_of_the_recipe():
    with pytest.raises(HeadraceError, match="did you mean 'accuracy'"):
        verdict({"acuracy": ">= 0.5"}, {"accuracy": 1.0})


def test_a_value_close_to_its_bound_is_shown_with_enough_digits():
    found = verdict({"accuracy": ">= 0.95"}, {"accuracy": 0.94999})
    assert found.reasons[0] == "accuracy 0.94999 >= 0.95: failed"


def test_a_verdict_survives_json():
    for comparison in (contest("accuracy", *table(90, 10, 0, 0)), contest("auc", *table(90, 10, 0, 0)), None):
        found = verdict({"accuracy": ">= 0.5", "auc": "> 0"}, {"accuracy": 0.9, "auc": math.nan}, comparison)
        assert Verdict.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_the_verdict_has_the_number_of_test_rows_and_what_few_of_them_cannot_show() -> None:
    gate = GateConfig(require={"accuracy": ">= 0.9"})
    few = check_gate(gate, {"accuracy": "higher"}, {"accuracy": 1.0}, None, rows=6)
    assert few.passed and few.reasons[-1] == (
        "measured on 6 test rows, which is few: the true accuracy may be anywhere from 0.61 to 1 (95 % confidence)"
    )
    many = check_gate(gate, {"accuracy": "higher"}, {"accuracy": 0.95}, None, rows=12_345)
    assert many.reasons[-1] == "measured on 12,345 test rows"
    values = check_gate(GateConfig(), {"mae": "lower"}, {"mae": 2.0}, None, rows=25)
    assert values.reasons[-1].endswith("errors that are larger by about 39% could not have been seen")
