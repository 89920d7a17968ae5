"""Estimates of a served model's performance before true answers are known, and how they compare with truths that came later.

Confidence-based performance estimation (CBPE) as in NannyML: if the probabilities are calibrated, each row is of class k with
the probability that the model gives for k, so the expected confusion matrix is known without any truth. **This holds as long as
the probabilities stay calibrated**: it sees shifts of the inputs to harder or easier regions, and it does not see that the same
inputs now have other answers (concept drift). So an estimate is always called one, and is checked against truths when they
come.

Of several labels per row each has its own probability, so the counts of right and wrong labels are known in the same way; how
often a whole row is right is not, because it depends on which labels go together.

For regression nothing is estimated: it would take a second model that predicts errors (direct loss estimation), which has to be
trained, judged and released like the first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.errors import DataError

Floats = NDArray[np.float64]
EXACT_ROWS = 1_000
"""Up to this many rows the distribution of the accuracy is computed exactly; above it, it is taken as normal."""
DRAWS = 200
"""Simulated truths for macro-F1 and for intervals. Macro-F1 is their mean: in the expected confusion matrix every class has a
fraction of a row, so a class that probably none of the rows has would count as one that is never found."""
NO_ERRORS = "not estimated: it would take a second model that predicts errors; wait for true answers"
NO_PROBABILITIES = "not estimated: it needs the calibrated probabilities of a classifier; wait for true answers"
NO_WHOLE_ROWS = "not estimated: it depends on which labels of a row go together; wait for true answers"
LABEL_METRICS = ("hamming_loss", "micro_f1", "macro_f1", "log_loss")
SMALLEST = 1e-15
"""Probabilities are clipped here for the log loss, as the metric is."""
MAX_DRAWN_ROWS = 20_000
"""Rows that are simulated; the interval of more rows is scaled from these."""


class Estimate(BaseModel):
    """The estimated value of a metric on a set of rows."""

    model_config = ConfigDict(frozen=True)
    metric: str
    rows: int
    value: float | None = None
    """None if it is not estimated."""
    low: float | None = None
    high: float | None = None
    """Interval in which the metric on these rows would be, if the probabilities are calibrated: sampling error only."""
    reason: str | None = None
    """Why nothing is estimated."""


class EstimateCheck(BaseModel):
    """How estimates of past windows compare with the truths that came later."""

    model_config = ConfigDict(frozen=True)
    metric: str
    windows: int
    """Windows with an estimate and truths."""
    bias: float | None = None
    """Mean of estimate minus truth: above zero, the estimates are too optimistic."""
    mean_absolute_error: float | None = None
    inside: float | None = None
    """Share of windows whose truth was within the estimate's interval."""
    inside_interval: tuple[float, float] | None = None
    """95 % Wilson interval of that share; windows are taken as independent."""
    expected_inside: float
    """The share that should be within, if the probabilities are calibrated."""
    trustworthy: bool | None = None
    """Whether the truths are compatible with calibrated probabilities; None without windows."""
    sentence: str


def estimate_performance(
    output: str, outputs: Any, confidence: float = 0.95, seed: int = 0, thresholds: Sequence[float] | None = None
) -> list[Estimate]:
    """Estimates accuracy, macro-F1, log loss and, for two classes, ROC AUC from a model's outputs; of several labels per row
    Hamming loss, micro-F1, macro-F1 and log loss.

    Args:
        output: the contract's kind of output; only `probabilities` and `labels` can be estimated.
        outputs: probabilities of classes or labels `(rows, classes)`, calibrated. Rows with NaN are left out.
        thresholds: from which each label is given, for `labels`; by default 0.5.
        confidence: of the intervals.
        seed: of the simulated truths.

    Raises:
        DataError: the outputs are not probabilities.
    """
    rows = len(outputs)
    if output == "labels":
        return _estimate_labels(outputs, thresholds, confidence, np.random.default_rng(seed))
    if output != "probabilities":
        metric, reason = ("mae", NO_ERRORS) if output in ("value", "values") else ("quality", NO_PROBABILITIES)
        return [Estimate(metric=metric, rows=rows, reason=reason)]
    p = _probabilities(outputs)
    metrics = ["accuracy", "macro_f1", "log_loss"] + (["auc"] if p.ndim == 2 and p.shape[1] == 2 else [])
    if not len(p):
        return [Estimate(metric=metric, rows=0, reason="not estimated: there are no rows") for metric in metrics]
    found = [estimate_accuracy(p, confidence)]
    simulated = _simulated(p, "auc" in metrics, np.random.default_rng(seed))
    values: dict[str, float | None] = {"macro_f1": float(simulated["macro_f1"].mean()), "log_loss": expected_log_loss(p)}
    values |= {"auc": expected_auc(p)} if "auc" in metrics else {}
    for metric, value in values.items():
        low, high = _spread(value, simulated[metric], len(p), confidence, math.inf if metric == "log_loss" else 1.0)
        undefined = "not estimated: all rows are of one class" if value is None else None
        found.append(Estimate(metric=metric, rows=len(p), value=value, low=low, high=high, reason=undefined))
    return found


def estimate_accuracy(probabilities: Floats, confidence: float = 0.95) -> Estimate:
    """Estimates the accuracy: the mean of the largest probability of each row `(rows, classes)`.

    The number of rows that are right has a Poisson binomial distribution; the interval has its quantiles.
    """
    right = probabilities.max(axis=1)
    low, high = _poisson_binomial(right, confidence)
    return Estimate(metric="accuracy", rows=len(right), value=float(right.mean()), low=low, high=high)


def expected_log_loss(probabilities: Floats) -> float:
    """Returns the expected log loss: the mean entropy of the rows, in natural units."""
    p = np.clip(probabilities, SMALLEST, 1.0)
    return float(-(probabilities * np.log(p)).sum(axis=1).mean())


def _estimate_labels(
    outputs: Any, thresholds: Sequence[float] | None, confidence: float, rng: np.random.Generator
) -> list[Estimate]:
    """Estimates the metrics of several labels per row. Intervals draw the labels of a row independently of each other."""
    p = np.asarray(outputs, dtype=np.float64)
    p = p[np.isfinite(p).all(axis=1)] if p.ndim == 2 and p.size else np.zeros((0, 1))
    unknown = [Estimate(metric=name, rows=len(p), reason=NO_WHOLE_ROWS) for name in ("subset_accuracy", "jaccard")]
    if not len(p):
        return [Estimate(metric=one, rows=0, reason="not estimated: there are no rows") for one in LABEL_METRICS]
    if p.min() < 0 or p.max() > 1 + 1e-6:
        raise DataError(
            "outputs that are not probabilities of labels",
            where="estimated performance",
            hint="give the probability of each label, from 0 to 1",
        )
    given = p >= np.array([0.5] * p.shape[1] if thresholds is None else thresholds)
    expected = _label_metrics(p, p, given)
    drawn = p[rng.choice(len(p), MAX_DRAWN_ROWS, replace=False)] if len(p) > MAX_DRAWN_ROWS else p
    chosen = drawn >= np.array([0.5] * p.shape[1] if thresholds is None else thresholds)
    draws = [_label_metrics(drawn, (rng.random(drawn.shape) < drawn).astype(np.float64), chosen) for _ in range(DRAWS)]
    found = []
    for metric, value in expected.items():
        simulated = np.array([one[metric] for one in draws])
        value = float(simulated.mean()) if metric == "macro_f1" else value
        low, high = _spread(value, simulated, len(p), confidence, math.inf if metric == "log_loss" else 1.0)
        found.append(Estimate(metric=metric, rows=len(p), value=value, low=low, high=high))
    return found + unknown


def _label_metrics(p: Floats, true: Floats, given: NDArray[np.bool_]) -> dict[str, float]:
    """Returns the metrics of labels given `(rows, labels)` if each is true with these probabilities, or as drawn."""
    right, wrong, missed = (true * given).sum(axis=0), ((1 - true) * given).sum(axis=0), (true * ~given).sum(axis=0)
    some = right + wrong + missed > 0
    f1 = 2 * right[some] / (2 * right + wrong + missed)[some]
    all_right, all_wrong = right.sum(), wrong.sum() + missed.sum()
    clipped = np.clip(p, SMALLEST, 1 - SMALLEST)
    return {
        "hamming_loss": float((wrong + missed).sum() / p.size),
        "micro_f1": float(2 * all_right / (2 * all_right + all_wrong)) if all_right + all_wrong else 1.0,
        "macro_f1": float(f1.mean()) if some.any() else 1.0,
        "log_loss": float(-(true * np.log(clipped) + (1 - true) * np.log(1 - clipped)).mean()),
    }


def expected_auc(probabilities: Floats) -> float | None:
    """Returns the ROC AUC of two classes in which each row counts as positive with its probability; None if it is undefined.

    AUC = Σ p_i (1 − p_j) [p_i > p_j, ties count half] / Σ p_i (1 − p_j) over pairs of different rows.
    """
    p = np.sort(probabilities[:, 1])
    positive, negative = p, 1 - p
    pairs = positive.sum() * negative.sum() - (positive * negative).sum()
    if pairs <= 0:
        return None
    _, first = np.unique(p, return_index=True)
    group_negative = np.add.reduceat(negative, first)
    below = np.cumsum(group_negative) - group_negative
    group_positive = np.add.reduceat(positive, first)
    own = np.add.reduceat(positive * negative, first)
    won = (group_positive * below).sum() + ((group_positive * group_negative - own) / 2).sum()
    return float(np.clip(won / pairs, 0, 1))


def check_estimates(estimates: Sequence[Estimate], truths: Sequence[float | None], confidence: float = 0.95) -> EstimateCheck:
    """Compares estimates of past windows with the same metric on the truths that came later, None where there are none.

    Args:
        confidence: that of the estimates' intervals.

    Raises:
        DataError: there is not one truth for each estimate, or the estimates are of several metrics.
    """
    names = sorted({one.metric for one in estimates})
    if len(estimates) != len(truths) or len(names) > 1:
        raise DataError(
            f"{len(estimates)} estimates of {', '.join(names) or 'nothing'} and {len(truths)} truths",
            where="estimated performance",
            hint="compare the estimates of one metric, each with the truth of its window",
        )
    metric = names[0] if names else "performance"
    pairs = [
        (one.value, one.low, one.high, truth)
        for one, truth in zip(estimates, truths, strict=True)
        if one.value is not None and one.low is not None and one.high is not None and truth is not None and math.isfinite(truth)
    ]
    if not pairs:
        sentence = f"the estimated {metric} cannot be checked: no window has an estimate and true answers"
        return EstimateCheck(metric=metric, windows=0, expected_inside=confidence, sentence=sentence)
    value, low, high, truth = np.array(pairs).T
    within = (low <= truth) & (truth <= high)
    inside, interval = float(within.mean()), _wilson_interval(int(within.sum()), len(pairs))
    trustworthy = interval[1] >= confidence
    verdict = "as often as calibrated probabilities should" if trustworthy else "too rarely: do not rely on the estimate"
    return EstimateCheck(
        metric=metric,
        windows=len(pairs),
        bias=float((value - truth).mean()),
        mean_absolute_error=float(np.abs(value - truth).mean()),
        inside=inside,
        inside_interval=interval,
        expected_inside=confidence,
        trustworthy=trustworthy,
        sentence=f"the true {metric} was within the interval of {100 * inside:.0f} % of {len(pairs)} estimates, {verdict}",
    )


def _wilson_interval(count: int, rows: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(count, rows).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _probabilities(outputs: Any) -> Floats:
    p = np.asarray(outputs, dtype=np.float64)
    p = p if p.size else np.zeros((0, p.shape[1] if p.ndim == 2 else 0))
    p = p[np.isfinite(p).all(axis=1)] if p.ndim == 2 else p
    if p.ndim != 2 or (len(p) and (p.min() < 0 or p.max() > 1 + 1e-6 or np.abs(p.sum(axis=1) - 1).max() > 1e-3)):
        raise DataError(
            f"outputs of shape {list(np.shape(outputs))} that are not class probabilities",
            where="estimated performance",
            hint="give the probabilities of all classes, which add up to 1 in each row",
        )
    return p


def _poisson_binomial(p: Floats, confidence: float) -> tuple[float, float]:
    """Returns quantiles of the share of successes of independent trials with probabilities `p`."""
    tail, rows = (1 - confidence) / 2, len(p)
    if rows > EXACT_ROWS:
        z, spread = NormalDist().inv_cdf(1 - tail), math.sqrt(float((p * (1 - p)).sum())) / rows
        return max(0.0, float(p.mean()) - z * spread), min(1.0, float(p.mean()) + z * spread)
    chance = np.ones(1)
    for one in p:
        chance = np.convolve(chance, [1 - one, one])
    reached = np.cumsum(chance)
    low = int(np.searchsorted(reached, tail, side="right"))
    high = int(np.searchsorted(reached, 1 - tail))
    return low / rows, min(high, rows) / rows


def _macro_f1(confusion: Floats) -> float:
    """Returns macro-F1 of a confusion matrix `(predicted, true)`."""
    right, given, true = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    some = given + true > 0
    return float((2 * right[some] / (given + true)[some]).mean())


def _simulated(p: Floats, with_auc: bool, rng: np.random.Generator) -> dict[str, Floats]:
    """Returns the metrics of simulated truths, each row's drawn from its probabilities."""
    if len(p) > MAX_DRAWN_ROWS:
        p = p[rng.choice(len(p), MAX_DRAWN_ROWS, replace=False)]
    reached, predicted, classes = np.cumsum(p, axis=1), p.argmax(axis=1), p.shape[1]
    found: dict[str, list[float]] = {"macro_f1": [], "log_loss": [], "auc": []}
    for _ in range(DRAWS):
        true = np.minimum((rng.random((len(p), 1)) > reached).sum(axis=1), classes - 1)
        confusion = np.bincount(predicted * classes + true, minlength=classes**2).reshape(classes, classes)
        found["macro_f1"].append(_macro_f1(confusion.astype(np.float64)))
        found["log_loss"].append(float(-np.log(np.clip(p[np.arange(len(p)), true], SMALLEST, 1.0)).mean()))
        if with_auc and 0 < true.sum() < len(true):
            found["auc"].append(_auc(p[:, 1], true))
    return {metric: np.array(values) for metric, values in found.items()}


def _auc(scores: Floats, true: NDArray[np.int64]) -> float:
    from scipy.stats import rankdata

    positives = int(true.sum())
    ranks = rankdata(scores)[true == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(true) - positives)))


def _spread(
    value: float | None, simulated: Floats, rows: int, confidence: float, most: float = 1.0
) -> tuple[float | None, float | None]:
    """Returns the quantiles of simulated metrics; of more rows than were simulated, closer to the value. The value is always
    within: an error that is too rare to be simulated counts in it."""
    if value is None or not len(simulated):
        return None, None
    tail = (1 - confidence) / 2
    scale = math.sqrt(min(1.0, MAX_DRAWN_ROWS / rows))
    low, high = np.quantile(simulated, [tail, 1 - tail])
    low, high = min(value, float(low)), max(value, float(high))
    return max(0.0, value + scale * (low - value)), min(most, value + scale * (high - value))
