"""The quality of a served model: by the true answers that are known, and estimated from its probabilities where none are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.errors import HeadraceError
from headrace.evaluation.intervals import wilson_interval
from headrace.evaluation.metrics import classification_metric
from headrace.evaluation.multilabel import score_multilabel
from headrace.evaluation.retraining_policy import Errors
from headrace.monitoring.confidence_sequence import MeanSequence
from headrace.monitoring.performance import Estimate, estimate_accuracy, estimate_performance
from headrace.recipe.task_variants import of_target
from headrace.runtime.contract import Contract
from headrace.serving.samples import Window

Floats = NDArray[np.float64]
BLOCK, FEWEST = 200, 50
"""True answers that are judged together, in the order in which they came; the newest block counts once it has `FEWEST`. Each
has a share of `alpha` of its own, 1/2, 1/6, 1/12, …, and an interval that holds at each look: so the chance that a quality that
has not changed is ever said to have fallen is at most alpha."""
CLIPPED = 10.0
"""Errors of a regression count up to this many times the mean error on the test rows: the interval needs a bound."""
SET_METRICS = ("jaccard", "subset_accuracy", "hamming_loss")
"""Metrics of several labels that each row contributes to separately; the first one where the gate uses none of them."""


class Quality(BaseModel):
    """The quality of a version by the true answers that are known."""

    model_config = ConfigDict(frozen=True)
    metric: str
    rows: int
    """The newest true answers, which are judged together."""
    all_rows: int
    value: float
    low: float
    high: float
    """An interval that holds at every look together."""
    reference: float
    """The metric on the test rows, before the release."""
    has_fallen: bool
    """Whether the interval, and that of the test rows, show that the quality is worse than at the release."""

    @property
    def sentence(self) -> str:
        verdict = "has fallen" if self.has_fallen else "as before"
        rows = f"the newest {self.rows:,} of {self.all_rows:,} true answers"
        interval = f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.metric} {self.value:.4g} ({interval}) on {rows}, {self.reference:.4g} at the release: {verdict}"


class EstimateBesideTruth(BaseModel):
    """An estimate for the sampled rows whose true answers have come since, beside the metric on the same rows."""

    model_config = ConfigDict(frozen=True)
    metric: str
    rows: int
    estimated: float
    low: float
    high: float
    real: float

    @property
    def is_inside(self) -> bool:
        """Whether the real figure is in the estimate's interval."""
        return self.low <= self.real <= self.high

    @property
    def sentence(self) -> str:
        verdict = "within the estimate's interval" if self.is_inside else "outside: do not rely on the estimate"
        return (
            f"{self.metric} of {self.rows:,} rows with true answers: estimated {self.estimated:.4g} "
            f"({self.low:.4g} to {self.high:.4g}), really {self.real:.4g}: {verdict}"
        )


@dataclass(frozen=True)
class Scored:
    """What each true answer says about one metric."""

    metric: str
    scores: Floats
    """`(answers,)`: the metric is their mean."""
    is_better_higher: bool
    reference: float
    """The metric on the test rows."""
    reference_rows: int
    variance: float
    """Of single scores of test rows; of scores from 0 to 1 its upper bound where it is not known."""
    highest: float = 1.0

    def losses(self, scores: Floats) -> Errors:
        """Summarises scores as errors: lower is better."""
        return Errors.of(1 - scores if self.is_better_higher else scores)

    @property
    def reference_losses(self) -> Errors | None:
        """The errors on the test rows; None if their number or variance is not known."""
        if self.reference_rows < 2 or not math.isfinite(self.variance):
            return None
        mean = 1 - self.reference if self.is_better_higher else self.reference
        return Errors(self.reference_rows, mean, self.variance)


def scored_by_truths(
    pairs: Sequence[Any], contract: Contract, metrics: dict[str, float], preferred: str | None
) -> Iterator[Scored]:
    """Yields what the answers and true answers of `pairs` say, in their order: accuracy, the mean absolute error of each
    target, or a metric of several labels. Nothing where the test rows have no such metric.

    Args:
        pairs: objects with `answer` and `truth`.
        metrics: of the test rows, `rows` among them.
        preferred: the gate's metric.
    """
    rows = int(metrics.get("rows", 0))
    if contract.output == "probabilities":
        scores = np.array([float(str(one.answer) == str(one.truth)) for one in pairs])
        yield from _of_shares("accuracy", scores, True, metrics)
    elif contract.output == "labels":
        metric = preferred if preferred in SET_METRICS else SET_METRICS[0]
        sets = [(set(map(str, one.answer)), set(map(str, one.truth))) for one in pairs if _are_lists(one)]
        measure = _SET_SCORES[metric]
        scores = np.array([measure(given, true, len(contract.labels or ())) for given, true in sets])
        yield from _of_shares(metric, scores, metric != "hamming_loss", metrics)
    elif contract.output in ("value", "values"):
        targets = contract.targets if contract.output == "values" else [None]
        for target in targets or ():
            name = "mae" if target is None else of_target("mae", target)
            errors = np.array(list(_errors(pairs, target)))
            if (reference := metrics.get(name)) and len(errors):
                rmse = metrics.get(name.replace("mae", "rmse", 1))
                variance = math.inf if rmse is None else max(0.0, rmse**2 - reference**2)
                yield Scored(name, errors, False, reference, rows, variance, CLIPPED * reference)


def quality_of(scored: Scored, alpha: float) -> Quality:
    """Returns the mean of the newest block of scores with its interval, and whether it has fallen."""
    block, share = newest_block(scored.scores, alpha)
    low, high = MeanSequence(alpha=share, highest=scored.highest).add("block", np.minimum(block, scored.highest)).interval
    least, most = _reference_interval(scored)
    return Quality(
        metric=scored.metric,
        rows=len(block),
        all_rows=len(scored.scores),
        value=float(block.mean()),
        low=low,
        high=high,
        reference=scored.reference,
        has_fallen=high < least if scored.is_better_higher else low > most,
    )


def newest_block(scores: Floats, alpha: float) -> tuple[Floats, float]:
    """Returns the newest block of scores, and its share of alpha."""
    number = max(1, -(-len(scores) // BLOCK))
    if number > 1 and len(scores) - (number - 1) * BLOCK < FEWEST:
        number -= 1
    return scores[(number - 1) * BLOCK : number * BLOCK], alpha / (number * (number + 1))


def estimates_of(contract: Contract, window: Window, preferred: str | None) -> list[Estimate]:
    """Returns the estimated metrics of the rows of a window, the gate's first; of rows without all probabilities the accuracy
    alone. Nothing is estimated from fewer than `FEWEST` rows. Empty without rows, and for models that write texts.

    Args:
        preferred: the gate's metric.
    """
    rows, p = _probabilities(contract, window)
    if not len(window) or contract.output == "text":
        return []
    if len(rows):
        found = estimate_performance(contract.output, p, thresholds=contract.thresholds)
    elif contract.output == "probabilities":
        known = window.confidences[np.isfinite(window.confidences)]
        found = [estimate_accuracy(known[:, None])] if len(known) else []
    elif contract.output == "labels":
        found = []
    else:
        found = estimate_performance(contract.output, np.zeros(len(window)))
    found = [_of_enough_rows(one) for one in found]
    return sorted(found, key=lambda one: (one.metric != preferred, one.value is None))


def _of_enough_rows(found: Estimate) -> Estimate:
    if found.value is None or found.rows >= FEWEST:
        return found
    return Estimate(metric=found.metric, rows=found.rows, reason=f"not estimated: {found.rows} rows, and it takes {FEWEST}")


def estimates_beside_truths(
    contract: Contract, window: Window, truths: Sequence[Any], preferred: str | None
) -> list[EstimateBesideTruth]:
    """Compares the estimates for the rows with true answers with the metrics on them; nothing from fewer than `FEWEST` rows."""
    rows, p = _probabilities(contract, window)
    known = [place for place, row in enumerate(rows) if truths[row] is not None]
    y, usable = _true_classes(contract, [truths[rows[place]] for place in known])
    p = p[[known[place] for place in usable]] if usable else p[:0]
    if len(p) < FEWEST:
        return []
    real = _real_metrics(contract, y, p)
    estimates = estimate_performance(contract.output, p, thresholds=contract.thresholds)
    found = [
        EstimateBesideTruth(
            metric=one.metric, rows=len(p), estimated=one.value, low=one.low, high=one.high, real=real[one.metric]
        )
        for one in estimates
        if one.value is not None and one.low is not None and one.high is not None and one.metric in real
    ]
    return sorted(found, key=lambda one: one.metric != preferred)


def _of_shares(metric: str, scores: Floats, is_better_higher: bool, metrics: dict[str, float]) -> Iterator[Scored]:
    reference = metrics.get(metric)
    if reference is not None and len(scores):
        yield Scored(metric, scores, is_better_higher, reference, int(metrics.get("rows", 0)), reference * (1 - reference))


def _reference_interval(scored: Scored) -> tuple[float, float]:
    """Returns the interval of the metric on the test rows, with 95 %; the metric itself where their number is not known."""
    if scored.reference_rows < 1:
        return scored.reference, scored.reference
    if scored.highest == 1.0:
        return wilson_interval(scored.reference, scored.reference_rows)
    spread = 1.96 * math.sqrt(scored.variance / scored.reference_rows) if math.isfinite(scored.variance) else 0.0
    return scored.reference - spread, scored.reference + spread


def _errors(pairs: Sequence[Any], target: str | None) -> Iterator[float]:
    for one in pairs:
        with contextlib.suppress(TypeError, ValueError, KeyError):
            answer, truth = (one.answer, one.truth) if target is None else (one.answer[target], one.truth[target])
            error = abs(float(answer) - float(truth))
            if np.isfinite(error):
                yield error


def _are_lists(pair: Any) -> bool:
    return isinstance(pair.answer, list) and isinstance(pair.truth, list)


def _probabilities(contract: Contract, window: Window) -> tuple[list[int], Floats]:
    """Returns the rows of a window with valid probabilities of all labels, and these `(rows, labels)`."""
    labels = len(contract.labels or ())
    rows, found = [], []
    for row, given in enumerate(window.probabilities):
        if isinstance(given, list) and len(given) == labels > 0 and all(_is_probability(p) for p in given):
            if contract.output == "probabilities" and abs(sum(given) - 1) > 1e-3:
                continue
            rows.append(row)
            found.append(given)
    return rows, np.array(found, dtype=np.float64).reshape(len(found), max(1, labels))


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1 + 1e-6


def _true_classes(contract: Contract, truths: Sequence[Any]) -> tuple[NDArray[Any], list[int]]:
    """Returns the true class of each row `(rows,)`, or 1 for each true label `(rows, labels)`, of the truths that the model
    knows, and their places."""
    places = {str(label): i for i, label in enumerate(contract.labels or ())}
    if contract.output == "probabilities":
        usable = [i for i, truth in enumerate(truths) if str(truth) in places]
        return np.array([places[str(truths[i])] for i in usable], dtype=np.int64), usable
    usable = [i for i, truth in enumerate(truths) if isinstance(truth, list) and all(str(one) in places for one in truth)]
    y = np.zeros((len(usable), len(places)), dtype=np.int64)
    for row, i in enumerate(usable):
        y[row, [places[str(label)] for label in truths[i]]] = 1
    return y, usable


def _real_metrics(contract: Contract, y: NDArray[Any], p: Floats) -> dict[str, float]:
    if contract.output == "labels":
        given = p >= np.array(contract.thresholds or [0.5] * p.shape[1])
        with contextlib.suppress(HeadraceError):
            return score_multilabel(y, np.stack([p, given], axis=1), [str(label) for label in contract.labels or ()]).metrics
        return {}
    found = {}
    names = ["accuracy", "macro_f1", "log_loss"] + (["auc"] if p.shape[1] == 2 and len(np.unique(y)) == 2 else [])
    for name in names:
        found[name] = float(classification_metric(name)(y, p))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _jaccard(given: set[str], true: set[str], labels: int) -> float:
    return len(given & true) / len(given | true) if given | true else 1.0


def _subset_accuracy(given: set[str], true: set[str], labels: int) -> float:
    return float(given == true)


def _hamming_loss(given: set[str], true: set[str], labels: int) -> float:
    return len(given ^ true) / max(1, labels)


_SET_SCORES: dict[str, Callable[[set[str], set[str], int], float]] = {
    "jaccard": _jaccard,
    "subset_accuracy": _subset_accuracy,
    "hamming_loss": _hamming_loss,
}
