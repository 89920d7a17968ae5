"""Whether a candidate may serve: bounds on its metrics, and a paired test against the champion on the same rows."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError, HeadraceError, RecipeError, near_miss
from headrace.evaluation import paired_tests
from headrace.evaluation.metrics import Result, as_probabilities, as_values, classification_metric, regression_metric
from headrace.evaluation.paired_tests import Bound
from headrace.evaluation.row_metrics import as_parts, total
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION, Better

if TYPE_CHECKING:
    from headrace.recipe.recipe import BeatChampion, GateConfig

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Comparison(Result):
    """Candidate against champion on the same rows. `improvement` and its bounds count upwards as better."""

    metric: str
    better: Better
    candidate: float | None
    """The candidate's metric; None where the rows leave it undefined."""
    champion: float | None
    improvement: float | None
    lower: float | None
    """With `confidence`, the true improvement is above this; None where the rows allow no bound."""
    upper: float | None
    p_value: float | None
    """Of McNemar's test or of the swap test, where one is made."""
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
    sentence: str


class Check(Result):
    """One thing the gate asked for."""

    metric: str
    value: float | None
    bound: str
    passed: bool
    sentence: str


class Verdict(Result):
    """The gate's answer. `reasons` are sentences for a person; those of what failed come first."""

    passed: bool
    reasons: list[str]
    checks: list[Check]
    comparison: Comparison | None = None
    same_model: bool = False
    """The candidate is the champion itself, so there was nothing to compare."""


def compare(
    metric: str,
    better: Better,
    y_true: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    beat: BeatChampion,
    seed: int,
) -> Comparison:
    """Compares two models' outputs on the same test rows; the same arguments give the same answer.

    `y_true` holds class indices or values `(rows,)`; `candidate` and `champion` hold probabilities `(rows, classes)` for a
    classification metric, values `(rows,)` for one of regression. 300,000 rows take seconds, with 100 classes half a minute.

    Raises:
        RecipeError: an unknown metric.
        TrainingError: no rows.
        ExportError: outputs that are NaN, of another shape, or no probabilities.
    """
    if metric not in CLASSIFICATION | REGRESSION:
        raise RecipeError(
            f"{metric!r} is no metric; {near_miss(metric, CLASSIFICATION | REGRESSION)}", where="gate.beat_champion.metric"
        )
    check = as_probabilities if metric in CLASSIFICATION else as_values
    ours, theirs = _checked(check, candidate, len(y_true), "candidate"), _checked(check, champion, len(y_true), "champion")
    if ours.shape != theirs.shape:
        raise ExportError(
            f"the candidate gives {ours.shape[1]} classes and the champion {theirs.shape[1]}",
            hint="bring both to the same labels first (headrace.evaluation.gate.align_classes)",
        )
    y = np.asarray(y_true).astype(np.int64 if metric in CLASSIFICATION else np.float64)
    measure = classification_metric(metric) if metric in CLASSIFICATION else regression_metric(metric)
    values = (measure(y, ours), measure(y, theirs))
    won, lost = _discordant(y, ours, theirs) if metric in CLASSIFICATION else (None, None)
    return _conclude(metric, better, values, _bound(metric, better, y, ours, theirs, beat, seed), beat, len(y), won, lost)


def compare_rows(
    metric: str,
    better: Better,
    candidate: NDArray[Any],
    champion: NDArray[Any],
    beat: BeatChampion,
    seed: int,
) -> Comparison:
    """Compares two models by what each test row adds to a metric: scores `(rows,)`, or amounts and weights `(rows, 2)`.

    For kinds with metrics of their own, see `headrace.evaluation.row_metrics`; the same arguments give the same answer.

    Raises:
        TrainingError: no rows.
        ExportError: scores that are NaN or of another shape, or two models measured on different rows.
    """
    ours = _checked(lambda parts, _: as_parts(parts), candidate, 0, "candidate")
    theirs = _checked(lambda parts, _: as_parts(parts), champion, 0, "champion")
    if ours.shape != theirs.shape or not np.array_equal(ours[:, 1], theirs[:, 1]):
        raise ExportError(
            f"the candidate was measured on {len(ours):,} rows and the champion on {len(theirs):,}, or they weigh differently",
            hint="measure both on the same test rows: headrace run NAME",
        )
    if np.array_equal(ours, theirs):
        bound = Bound(0.0, 0.0, "identical outputs")
    else:
        first, second = (ours, theirs) if better == "higher" else (theirs, ours)
        bound = paired_tests.quotient(first, second, beat.margin, beat.confidence, np.random.default_rng(seed))
    return _conclude(metric, better, (total(ours), total(theirs)), bound, beat, len(ours), None, None)


def judge(
    gate: GateConfig,
    better: Mapping[str, Better],
    metrics: Mapping[str, float],
    comparison: Comparison | None,
    same_model: bool = False,
) -> Verdict:
    """Holds a candidate against `gate.require`, then against the champion.

    Without a champion (`comparison` None) the thresholds alone decide. A metric that is NaN or missing never passes.
    """
    checks = [_threshold(metric, bound, metrics.get(metric), better) for metric, bound in gate.require.items()]
    remarks = []
    if same_model:
        remarks.append("the candidate is the champion itself, so there is nothing to compare")
    elif gate.beat_champion is None:
        remarks.append("the recipe asks for no comparison with the champion")
    elif comparison is None:
        remarks.append("there is no champion yet, so the thresholds alone decide")
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
        remarks.append("the recipe asks for no threshold (gate.require)")
    ordered = sorted(checks, key=lambda check: check.passed)
    return Verdict(
        passed=all(check.passed for check in checks),
        reasons=[check.sentence for check in ordered] + remarks,
        checks=checks,
        comparison=None if same_model else comparison,
        same_model=same_model,
    )


def align_classes(probabilities: NDArray[Any], labels: Sequence[Any], wanted: Sequence[Any]) -> NDArray[Any]:
    """Probabilities `(rows, len(labels))` in the order of `wanted`: `(rows, len(wanted))`.

    A class that this model does not know gets probability 0. The probability of a class that is not wanted goes to the
    others in proportion, so a champion is not held to an answer that can no longer be right.
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
    check: Callable[[NDArray[Any], int], NDArray[np.float64]], outputs: NDArray[Any], rows: int, who: str
) -> NDArray[np.float64]:
    try:
        return check(outputs, rows)
    except HeadraceError as error:
        raise type(error)(error.message, where=error.where or f"outputs of the {who}", hint=error.hint) from None


def _discordant(y: NDArray[Any], ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[int, int]:
    right, right_before = ours.argmax(axis=1) == y, theirs.argmax(axis=1) == y
    return int((right & ~right_before).sum()), int((right_before & ~right).sum())


def _bound(
    metric: str,
    better: Better,
    y: NDArray[Any],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    beat: BeatChampion,
    seed: int,
) -> Bound:
    """The bound that fits the metric; the higher or lower sense of `better` is met by exchanging the two models."""
    if np.array_equal(ours, theirs):
        return Bound(0.0, 0.0, "identical outputs")
    natural = (CLASSIFICATION | REGRESSION)[metric]
    first, second = (ours, theirs) if better == natural else (theirs, ours)
    rng = np.random.default_rng(seed)
    level = beat.confidence
    if metric == "accuracy":
        test = paired_tests.mcnemar if beat.margin == 0 else paired_tests.tango
        return test(*_discordant(y, first, second), len(y), level)
    if metric == "macro_f1":
        return paired_tests.macro_f1(y, first.argmax(axis=1), second.argmax(axis=1), first.shape[1], beat.margin, level, rng)
    if metric == "auc":
        return paired_tests.delong(y, first, second, level) if len(np.unique(y)) > 1 else Bound(None, None, "one class only")
    if metric in ("rmse", "r2"):
        return paired_tests.squared(y, first, second, metric, beat.margin, level, rng)
    loss = _row_log_loss if metric == "log_loss" else _row_error
    return paired_tests.mean(loss(y, second) - loss(y, first), beat.margin, level, rng)


def _row_log_loss(y: NDArray[Any], p: NDArray[np.float64]) -> NDArray[np.float64]:
    tiny = np.finfo(np.float64).eps
    losses: NDArray[np.float64] = -np.log(np.clip(p[np.arange(len(y)), y], tiny, 1 - tiny))
    return losses


def _row_error(y: NDArray[Any], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    errors: NDArray[np.float64] = np.abs(predicted - y)
    return errors


def _conclude(
    metric: str,
    better: Better,
    values: tuple[float, float],
    bound: Bound,
    beat: BeatChampion,
    rows: int,
    won: int | None,
    lost: int | None,
) -> Comparison:
    candidate, champion = (_or_none(value) for value in values)
    improvement = None
    if candidate is not None and champion is not None:
        improvement = candidate - champion if better == "higher" else champion - candidate
    promoted = improvement is not None and bound.lower is not None and bound.lower > beat.margin
    fields: dict[str, Any] = {
        "metric": metric,
        "better": better,
        "candidate": candidate,
        "champion": champion,
        "improvement": improvement,
        "lower": bound.lower,
        "upper": bound.upper,
        "p_value": bound.p_value,
        "margin": beat.margin,
        "confidence": beat.confidence,
        "rows": rows,
        "won": won,
        "lost": lost,
        "method": bound.method,
        "promoted": promoted,
    }
    return Comparison(**fields, sentence=_sentence(fields))


def _sentence(c: Mapping[str, Any]) -> str:
    if c["improvement"] is None:
        return f"{c['metric']} is undefined on these {c['rows']:,} rows, so nothing shows that the candidate is better: no"
    start = f"{c['metric']} {c['candidate']:.4g} against the champion's {c['champion']:.4g} on the same {c['rows']:,} rows"
    if c["method"] == "identical outputs":
        return f"{start}: the outputs are identical, no evidence that it is better: {'yes' if c['promoted'] else 'no'}"
    if c["lower"] is None:
        return f"{start}: no bound can be given ({c['method']}): no"
    exact = "" if c["p_value"] is None else f"; p = {c['p_value']:.3g}"
    if c["metric"] == "accuracy":
        exact = f"; only the candidate right {c['won']}, only the champion {c['lost']}{exact}"
    return (
        f"{start}: improvement {c['improvement']:+.4g}, with {c['confidence']:.4g} confidence above {c['lower']:+.4g}, "
        f"and more than {c['margin']:g} is asked ({c['method']}{exact}): {'yes' if c['promoted'] else 'no'}"
    )


def _threshold(metric: str, bound: str, value: float | None, better: Mapping[str, Better]) -> Check:
    """One entry of `gate.require`.

    Raises:
        RecipeError: `bound` is no operator with a number, or the task has no such metric.
    """
    found = re.fullmatch(r"\s*(>=|<=|>|<)\s*(\S+)\s*", bound)
    if found is None or metric not in better:
        raise RecipeError(
            f"{metric}: {bound!r} cannot be checked; {near_miss(metric, better)}",
            where="gate.require",
            hint=f'name a metric of the task with a bound such as ">= 0.95": {", ".join(better)}',
        )
    sign, limit = found[1], float(found[2])
    if value is None or math.isnan(value):
        return Check(
            metric=metric,
            value=None,
            bound=f"{sign} {limit:g}",
            passed=False,
            sentence=f"{metric} is undefined on the test rows, {sign} {limit:g} is asked: no",
        )
    passed = OPERATORS[sign](value, limit)
    return Check(
        metric=metric,
        value=value,
        bound=f"{sign} {limit:g}",
        passed=passed,
        sentence=f"{metric} {_beside(value, limit)} {sign} {limit:g}: {'yes' if passed else 'no'}",
    )


def _beside(value: float, limit: float) -> str:
    """The value with as many digits as it takes to see that it is not the limit."""
    for digits in range(4, 17):
        if (shown := f"{value:.{digits}g}") != f"{limit:.{digits}g}" or value == limit:
            return shown
    return repr(value)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
