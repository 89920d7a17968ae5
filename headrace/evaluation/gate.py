"""The release gate: thresholds on a candidate's metrics, and a paired comparison with the champion on the same rows."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError, HeadraceError, RecipeError, near_miss
from headrace.evaluation import paired_tests
from headrace.evaluation.intervals import wilson_interval
from headrace.evaluation.metrics import Result, as_probabilities, as_values, classification_metric, regression_metric
from headrace.evaluation.paired_tests import Bound
from headrace.evaluation.row_metrics import as_contributions, ratio_of_sums
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION, Better

if TYPE_CHECKING:
    from headrace.recipe.gate import BeatChampion, GateConfig

IDENTICAL = "identical outputs"
"""The method of a comparison of two models with the same outputs."""
FEW_ROWS = 100
"""With fewer test rows, a remark says what they could not have shown."""
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Comparison(Result):
    """A candidate compared with the champion on the same rows. `improvement` and its bounds are positive when the candidate
    is better."""

    metric: str
    better: Better
    candidate: float | None
    """The candidate's metric; None if it is undefined on these rows."""
    champion: float | None
    improvement: float | None
    lower: float | None
    """With `confidence`, the true improvement is above this; None if the rows allow no bound."""
    upper: float | None
    p_value: float | None
    """Of McNemar's test or of the swap test; None for methods without a test."""
    margin: float
    confidence: float
    rows: int
    won: int | None
    """Rows that the candidate alone gets right (classification)."""
    lost: int | None
    """Rows that the champion alone gets right."""
    method: str
    promoted: bool
    """Whether `lower` exceeds `margin`."""
    groups: int | None = None
    """Groups of rows that were compared, where rows of a group belong together."""
    left_out: int = 0
    """Test rows that were not compared, because the champion may have been trained on them."""
    number: int = 1
    """Which comparison on these test rows it is; `confidence` is what its share of the error budget leaves."""
    budget: float | None = None
    """Stated chance of any false promotion over all comparisons on these test rows, 0 to 1."""
    test_set: str | None = None
    """Identifies the division of rows that the test rows come from."""
    against: str | None = None
    """Version of the champion."""
    unknown_labels: list[str] = []
    """Labels that the champion does not know: it cannot be right on their rows."""
    unknown_rows: int = 0
    """How many rows have such a label."""

    @property
    def sentence(self) -> str:
        """The comparison in one sentence."""
        if self.improvement is None or self.candidate is None or self.champion is None:
            return (
                f"{self.metric} is undefined on these {self.rows:,} rows, so nothing shows that the candidate is better: failed"
            )
        verdict = "passed" if self.promoted else "failed"
        rows = f"{self.rows:,} rows" if self.groups is None else f"{self.rows:,} rows in {self.groups:,} groups"
        start = f"{self.metric} {self.candidate:.4g} against the champion's {self.champion:.4g} on the same {rows}"
        if self.left_out:
            start += f" (without {self.left_out:,} that the champion may have been trained on)"
        if self.unknown_rows:
            names = ", ".join(map(repr, self.unknown_labels))
            start += f", of which {self.unknown_rows:,} have a label that the champion does not know ({names}) and gets wrong"
        if self.method == IDENTICAL:
            return f"{start}: the outputs are identical, no evidence that it is better: {verdict}"
        if self.lower is None:
            return f"{start}: no bound can be computed ({self.method}): failed"
        exact = "" if self.p_value is None else f"; p = {self.p_value:.3g}"
        if self.metric == "accuracy":
            exact = f"; only the candidate right {self.won}, only the champion {self.lost}{exact}"
        return (
            f"{start}: improvement {self.improvement:+.4g}, with {self.confidence:.4g} confidence above {self.lower:+.4g}, "
            f"more than {self.margin:g} required ({self.method}{exact}){self._spent}: {verdict}"
        )

    @property
    def _spent(self) -> str:
        """The share of the error budget that this comparison spends, in words."""
        if self.budget is None:
            return ""
        return (
            f"; comparison {self.number} on these test rows, which spends {1 - self.confidence:.2g} of {self.budget:.2g} "
            "(chance of any false promotion)"
        )


class Check(Result):
    """One requirement of the gate and its result."""

    metric: str
    value: float | None
    bound: str
    passed: bool
    sentence: str


class Verdict(Result):
    """The gate's decision. `reasons` are sentences for people, those of failed checks first."""

    passed: bool
    reasons: list[str]
    checks: list[Check]
    comparison: Comparison | None = None
    same_model: bool = False
    """The candidate has the same bytes as the champion, so there was nothing to compare."""


def compare(
    y_true: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    beat: BeatChampion,
    better: Better,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> Comparison:
    """Compares two models' outputs on the same test rows by `beat.metric`; the same arguments give the same result.

    `groups` `(rows,)` are equal for rows that belong together: then groups are compared, not rows.

    `y_true` holds class indices or values `(rows,)`; `candidate` and `champion` hold probabilities `(rows, classes)` for a
    classification metric, values `(rows,)` for a regression metric. 300,000 rows take seconds, with 100 classes half a minute.

    Raises:
        RecipeError: an unknown metric.
        TrainingError: no rows.
        ExportError: outputs with NaN, of another shape, or that are not probabilities.
    """
    metric, known = beat.metric, CLASSIFICATION | REGRESSION
    if metric not in known:
        raise RecipeError(f"unknown metric {metric!r}; {near_miss(metric, known)}", where="gate.beat_champion.metric")
    is_class = metric in CLASSIFICATION
    check = as_probabilities if is_class else as_values
    ours, theirs = (
        _checked(check, outputs, len(y_true), name) for outputs, name in ((candidate, "candidate"), (champion, "champion"))
    )
    if ours.shape != theirs.shape:
        raise ExportError(
            f"the candidate has {ours.shape[1]} classes and the champion {theirs.shape[1]}",
            hint="bring both to the same labels first (headrace.evaluation.gate.align_classes)",
        )
    y = np.asarray(y_true).astype(np.int64 if is_class else np.float64)
    measure = classification_metric(metric) if is_class else regression_metric(metric)
    won, lost = _discordant(y, ours, theirs) if is_class else (None, None)
    if np.array_equal(ours, theirs):
        bound = Bound(0.0, 0.0, IDENTICAL)
    else:
        # A test looks at the metric in its natural direction: for the opposite one the models change places.
        pair = (ours, theirs) if better == known[metric] else (theirs, ours)
        bound = PAIRED_TESTS[metric](Pair(y, *pair, _numbered(groups)), beat, np.random.default_rng(seed))
    values = (measure(y, ours), measure(y, theirs))
    return _comparison(beat, better, values, bound, rows=len(y), won=won, lost=lost, groups=groups)


def compare_rows(
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    beat: BeatChampion,
    better: Better,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> Comparison:
    """Compares two models by what each test row contributes to a metric: scores `(rows,)`, or amounts and weights
    `(rows, 2)`. For task types with their own metrics, see `headrace.evaluation.row_metrics`.

    Raises:
        TrainingError: no rows.
        ExportError: scores with NaN or of another shape, or two models measured on different rows.
    """
    ours, theirs = (
        _checked(lambda rows, _: as_contributions(rows), scores, 0, name)
        for scores, name in ((candidate, "candidate"), (champion, "champion"))
    )
    if ours.shape != theirs.shape or not np.array_equal(ours[:, 1], theirs[:, 1]):
        raise ExportError(
            f"the candidate was measured on {len(ours):,} rows and the champion on {len(theirs):,}, or with other weights",
            hint="measure both on the same test rows: headrace run NAME",
        )
    if np.array_equal(ours, theirs):
        bound = Bound(0.0, 0.0, IDENTICAL)
    else:
        pair = (ours, theirs) if better == "higher" else (theirs, ours)
        rng = np.random.default_rng(seed)
        bound = paired_tests.quotient(*pair, beat.margin, beat.confidence, rng, _numbered(groups))
    values = (ratio_of_sums(ours), ratio_of_sums(theirs))
    return _comparison(beat, better, values, bound, rows=len(ours), groups=groups)


def check_gate(
    gate: GateConfig,
    better: Mapping[str, Better],
    metrics: Mapping[str, float],
    comparison: Comparison | None,
    same_model: bool = False,
    rows: int | None = None,
    further: Sequence[Check] = (),
    notes: Sequence[str] = (),
) -> Verdict:
    """Checks a candidate's metrics against `gate.require`, then the comparison with the champion.

    Without a champion (`comparison` is None) the thresholds alone decide. A metric that is NaN or missing never passes.

    Args:
        rows: number of test rows, for a remark on what this many rows show.
        further: requirements beside those of the section `gate`, for example on what compression may lose.
        notes: remarks about them.
    """
    checks = [_threshold(metric, bound, metrics.get(metric), better) for metric, bound in gate.require.items()]
    checks += further
    remarks = [*notes]
    if same_model:
        remarks.append("the candidate is identical to the champion, so there is nothing to compare")
    elif gate.beat_champion is None:
        remarks.append("the recipe has no gate.beat_champion, so the candidate is not compared with the champion")
    elif comparison is None:
        remarks.append("the model has no champion yet, so the thresholds alone decide")
    else:
        checks.append(
            Check(
                metric=comparison.metric,
                value=comparison.lower,
                bound=f"> {comparison.margin:g} better than the champion",
                passed=comparison.promoted,
                sentence=comparison.sentence,
            )
        )
    if not gate.require:
        remarks.append("the recipe has no thresholds (gate.require)")
    if rows is not None:
        remarks.append(rows_remark(metrics, rows))
    ordered = sorted(checks, key=lambda check: check.passed)
    return Verdict(
        passed=all(check.passed for check in checks),
        reasons=[check.sentence for check in ordered] + remarks,
        checks=checks,
        comparison=None if same_model else comparison,
        same_model=same_model,
    )


def rows_remark(metrics: Mapping[str, float], rows: int) -> str:
    """Returns on how many rows the metrics were measured, and of few rows what they could not have shown."""
    remark = f"measured on {rows:,} test row{'' if rows == 1 else 's'}"
    if rows >= FEW_ROWS:
        return remark
    accuracy = metrics.get("accuracy")
    if accuracy is not None and math.isfinite(accuracy):
        low, high = wilson_interval(accuracy, rows)
        return f"{remark}, which is few: the true accuracy may be anywhere from {low:.2g} to {high:.2g} (95 % confidence)"
    return f"{remark}, which is few: errors that are larger by about {1.96 / math.sqrt(rows):.0%} could not have been seen"


def align_classes(probabilities: NDArray[Any], labels: Sequence[Any], wanted: Sequence[Any]) -> NDArray[Any]:
    """Reorders probabilities `(rows, len(labels))` to the classes `wanted`: `(rows, len(wanted))`.

    A class that the model does not know gets probability 0. The probability of a class that is not in `wanted` goes to the
    others in proportion, since that answer can no longer be right.
    """
    index = {label: column for column, label in enumerate(wanted)}
    aligned = np.zeros((len(probabilities), len(wanted)), dtype=np.float64)
    for column, label in enumerate(labels):
        if label in index:
            aligned[:, index[label]] = probabilities[:, column]
    sums = aligned.sum(axis=1, keepdims=True)
    if all(label in index for label in labels):
        return aligned
    return np.where(sums > 0, aligned / np.where(sums > 0, sums, 1.0), 1.0 / len(wanted))


def _checked(
    check: Callable[[NDArray[Any], int], NDArray[np.float64]], outputs: NDArray[Any], rows: int, name: str
) -> NDArray[np.float64]:
    try:
        return check(outputs, rows)
    except HeadraceError as error:
        raise type(error)(error.message, where=error.where or f"outputs of the {name}", hint=error.hint) from None


def _discordant(y: NDArray[Any], candidate: NDArray[np.float64], champion: NDArray[np.float64]) -> tuple[int, int]:
    """Returns the number of rows that only the candidate, and only the champion, classifies correctly."""
    right, champion_right = candidate.argmax(axis=1) == y, champion.argmax(axis=1) == y
    return int((right & ~champion_right).sum()), int((champion_right & ~right).sum())


@dataclass(frozen=True)
class Pair:
    """The outputs of two models on the rows whose true classes or values are `y`."""

    y: NDArray[Any]
    candidate: NDArray[np.float64]
    champion: NDArray[np.float64]
    groups: NDArray[np.int64] | None = None
    """The group of each row, from 0."""


def _numbered(groups: NDArray[Any] | None) -> NDArray[np.int64] | None:
    return None if groups is None else np.unique(groups, return_inverse=True)[1].astype(np.int64)


PairedTest = Callable[[Pair, "BeatChampion", np.random.Generator], Bound]


def _accuracy(pair: Pair, beat: BeatChampion, rng: np.random.Generator) -> Bound:
    if pair.groups is not None:
        candidate, champion = ((p.argmax(axis=1) == pair.y).astype(np.float64) for p in (pair.candidate, pair.champion))
        return paired_tests.mean(candidate - champion, beat.margin, beat.confidence, rng, pair.groups)
    test = paired_tests.mcnemar if beat.margin == 0 else paired_tests.tango
    return test(*_discordant(pair.y, pair.candidate, pair.champion), len(pair.y), beat.confidence)


def _macro_f1(pair: Pair, beat: BeatChampion, rng: np.random.Generator) -> Bound:
    predicted, classes = (pair.candidate.argmax(axis=1), pair.champion.argmax(axis=1)), pair.candidate.shape[1]
    return paired_tests.macro_f1(pair.y, *predicted, classes, beat.margin, beat.confidence, rng, pair.groups)


def _auc(pair: Pair, beat: BeatChampion, rng: np.random.Generator) -> Bound:
    if len(np.unique(pair.y)) == 1:
        return Bound(None, None, "one class only")
    grouped = None if pair.groups is None else (pair.groups, beat.margin, rng)
    return paired_tests.delong(pair.y, pair.candidate, pair.champion, beat.confidence, grouped)


def _log_loss(pair: Pair, beat: BeatChampion, rng: np.random.Generator) -> Bound:
    tiny, rows = np.finfo(np.float64).eps, np.arange(len(pair.y))
    candidate, champion = (-np.log(np.clip(p[rows, pair.y], tiny, 1 - tiny)) for p in (pair.candidate, pair.champion))
    return paired_tests.mean(champion - candidate, beat.margin, beat.confidence, rng, pair.groups)


def _absolute_error(pair: Pair, beat: BeatChampion, rng: np.random.Generator) -> Bound:
    candidate, champion = (np.abs(predicted - pair.y) for predicted in (pair.candidate, pair.champion))
    return paired_tests.mean(champion - candidate, beat.margin, beat.confidence, rng, pair.groups)


def _squared_error(pair: Pair, beat: BeatChampion, rng: np.random.Generator) -> Bound:
    rows = pair.y, pair.candidate, pair.champion
    return paired_tests.squared(*rows, beat.metric, beat.margin, beat.confidence, rng, pair.groups)


PAIRED_TESTS: dict[str, PairedTest] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "auc": _auc,
    "log_loss": _log_loss,
    "mae": _absolute_error,
    "rmse": _squared_error,
    "r2": _squared_error,
}
"""The paired test of each metric: it bounds the improvement of the candidate over the champion."""


def _comparison(
    beat: BeatChampion,
    better: Better,
    values: tuple[float, float],
    bound: Bound,
    *,
    rows: int,
    won: int | None = None,
    lost: int | None = None,
    groups: NDArray[Any] | None = None,
) -> Comparison:
    candidate, champion = (_or_none(value) for value in values)
    improvement = None
    if candidate is not None and champion is not None:
        improvement = candidate - champion if better == "higher" else champion - candidate
    return Comparison(
        metric=beat.metric,
        better=better,
        candidate=candidate,
        champion=champion,
        improvement=improvement,
        lower=bound.lower,
        upper=bound.upper,
        p_value=bound.p_value,
        margin=beat.margin,
        confidence=beat.confidence,
        rows=rows,
        won=won,
        lost=lost,
        method=bound.method,
        groups=None if groups is None else len(np.unique(groups)),
        promoted=improvement is not None and bound.lower is not None and bound.lower > beat.margin,
    )


def _threshold(metric: str, bound: str, value: float | None, better: Mapping[str, Better]) -> Check:
    """Checks one entry of `gate.require`.

    Raises:
        RecipeError: `bound` is not an operator with a number, or the task does not have the metric.
    """
    found = re.fullmatch(r"\s*(>=|<=|>|<)\s*(\S+)\s*", bound)
    if found is None or metric not in better:
        raise RecipeError(
            f"{metric}: {bound!r} cannot be checked; {near_miss(metric, better)}",
            where="gate.require",
            hint=f'use a metric of the task with a bound, for example ">= 0.95": {", ".join(better)}',
        )
    sign, limit = found[1], float(found[2])
    if value is None or math.isnan(value):
        return Check(
            metric=metric,
            value=None,
            bound=f"{sign} {limit:g}",
            passed=False,
            sentence=f"{metric} is undefined on the test rows, {sign} {limit:g} is required: failed",
        )
    passed = OPERATORS[sign](value, limit)
    return Check(
        metric=metric,
        value=value,
        bound=f"{sign} {limit:g}",
        passed=passed,
        sentence=f"{metric} {_distinguishable(value, limit)} {sign} {limit:g}: {'passed' if passed else 'failed'}",
    )


def _distinguishable(value: float, limit: float) -> str:
    """Formats the value with as many digits as it takes to tell it from the limit."""
    for digits in range(4, 17):
        if (shown := f"{value:.{digits}g}") != f"{limit:.{digits}g}" or value == limit:
            return shown
    return repr(value)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
