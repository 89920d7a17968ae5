"""How good a model is on the test rows: metrics, per class and per slice, how far its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.errors import ExportError, TrainingError
from headrace.recipe.task_types import CALIBRATION, CLASSIFICATION, INTERVALS, REGRESSION

CALIBRATION_BINS = 15
MOST_SLICE_VALUES = 20
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Result(BaseModel):
    """Unchanging, and the same again after a trip through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        return cls.model_validate(fields)


class ClassScore(Result):
    """One class; a score that divides by zero rows is None."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    """Test rows of this class."""


class SliceScore(Result):
    """The test rows that share one value of a column."""

    column: str
    value: str
    rows: int
    accuracy: float | None = None
    mae: float | None = None
    score: float | None = None
    """Of a metric by rows: `Evaluation.sliced_by` names it."""
    standard_error: float | None = None
    """Of `mae` or of `score`."""
    bias: float | None = None
    """Mean of prediction minus truth: above zero the model says too much."""
    coverage: float | None = None
    """Share of true values inside the interval, where there is one."""


class CalibrationBin(Result):
    """The rows whose top probability lies in `(lower, upper]`; empty bins are left out."""

    lower: float
    upper: float
    rows: int
    confidence: float
    """Mean top probability."""
    accuracy: float


class Evaluation(Result):
    """What one model does on one set of rows. A metric that these rows leave undefined is absent, and a note says why."""

    task: Literal["classification", "regression", "scores"]
    """`scores`: metrics that are means or quotients over rows (`headrace.evaluation.row_metrics`)."""
    rows: int
    metrics: dict[str, float]
    notes: list[str] = []
    slices: list[SliceScore] = []
    sliced_by: str | None = None
    """The metric of `slices`, for `scores`."""
    samples: list[dict[str, str]] = []
    """Answers for a person to read, such as a prompt and its text."""
    labels: list[str] = []
    classes: list[ClassScore] = []
    confusion: list[list[int]] = []
    """Rows of the true class i that were predicted as class j."""
    calibration: list[CalibrationBin] = []
    calibration_error: float | None = None
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3), 15 bins of equal width."""
    calibration_error_before: float | None = None
    """The same without the temperature that was fitted on the validation rows, where one was."""
    interval: float | None = None
    """Share of true values that the intervals are to hold."""
    residual_quantiles: dict[str, float] = {}
    """Quantiles of prediction minus truth, in the target's unit."""


def score_classification(
    y_true: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    slices: Mapping[str, NDArray[Any]] | None = None,
) -> Evaluation:
    """Scores class probabilities `(rows, classes)` against class indices `(rows,)`.

    `slices` maps a column's name to its values `(rows,)`.

    Raises:
        TrainingError: no rows, or indices without a label.
        ExportError: NaN or infinity among the outputs, or rows that are no probabilities.
    """
    p = as_probabilities(probabilities, len(y_true))
    y = _as_classes(y_true, p.shape[1], labels)
    predicted = p.argmax(axis=1)
    notes: list[str] = []
    metrics = {name: classification_metric(name)(y, p) for name in CLASSIFICATION}
    if absent := [labels[k] for k in range(p.shape[1]) if not (y == k).any()]:
        notes.append(f"no test row of class {', '.join(absent)}: left out of auc and, unless predicted, of macro_f1")
    if len(set(y.tolist())) < 2:
        notes.append(f"every test row is of class {labels[int(y[0])]}, so auc is undefined")
    bins, error = _calibrate(p.max(axis=1), predicted == y)
    return Evaluation(
        task="classification",
        rows=len(y),
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)} | dict.fromkeys(CALIBRATION, error),
        notes=notes,
        slices=slice_rows(slices, len(y), lambda at: {"accuracy": float((predicted[at] == y[at]).mean())}),
        labels=[str(label) for label in labels],
        classes=_class_scores(y, predicted, labels),
        confusion=_confusion(y, predicted, p.shape[1]),
        calibration=bins,
        calibration_error=error,
    )


def score_regression(
    y_true: NDArray[Any],
    y_pred: NDArray[Any],
    slices: Mapping[str, NDArray[Any]] | None = None,
    interval: float | None = None,
) -> Evaluation:
    """Scores predicted values `(rows,)` against true ones `(rows,)`, in the target's unit.

    Args:
        interval: the share of true values that intervals are to hold; `y_pred` is `(rows, 3)` then: value, lower, upper.

    Raises:
        TrainingError: no rows, or NaN or infinity among the true values.
        ExportError: NaN or infinity among the predictions.
    """
    predicted = as_values(y_pred, len(y_true))
    y = np.asarray(y_true, dtype=np.float64)
    if bad := int((~np.isfinite(y)).sum()):
        raise TrainingError(
            f"{bad} of {len(y)} true values are NaN or infinite",
            where="the target column",
            hint="name the target in data.drop_missing of the recipe, or expect its values to be present",
        )
    metrics = {name: regression_metric(name)(y, predicted) for name in REGRESSION}
    residual = predicted - y
    scores: dict[str, NDArray[np.float64]] = {}
    if interval is not None:
        scores = {name: interval_scores(name, y, y_pred) for name in INTERVALS}
        metrics |= {name: float(rows.mean()) for name, rows in scores.items()}
    return Evaluation(
        task="regression",
        rows=len(y),
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        notes=[] if np.isfinite(metrics["r2"]) else ["the true values do not vary, so r2 is undefined"],
        slices=slice_rows(slices, len(y), lambda at: _error_scores(residual[at]) | _coverage(scores, at)),
        interval=interval,
        residual_quantiles={f"{q:g}": float(v) for q, v in zip(QUANTILES, np.quantile(residual, QUANTILES), strict=True)},
    )


def classification_metric(name: str) -> Callable[[NDArray[Any], NDArray[np.float64]], float]:
    """The metric of that name as a function of class indices and probabilities; NaN where undefined."""
    return {"accuracy": _accuracy, "macro_f1": _macro_f1, "auc": auc, "log_loss": _log_loss}[name]


def regression_metric(name: str) -> Callable[[NDArray[Any], NDArray[np.float64]], float]:
    """The metric of that name as a function of true and predicted values; NaN where undefined."""
    return {"mae": _mae, "rmse": _rmse, "r2": _r2}[name]


def as_probabilities(outputs: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """Checks that `outputs` are probabilities `(rows, classes)`; each row is scaled to sum to exactly 1.

    Raises:
        TrainingError: no rows.
        ExportError: another shape, NaN, infinity, or rows that do not sum to 1.
    """
    p = np.asarray(outputs, dtype=np.float64)
    _check_rows(rows)
    if p.ndim != 2 or len(p) != rows or p.shape[1] < 2:
        raise ExportError(f"outputs of shape {p.shape} for {rows} rows; probabilities have shape (rows, classes)")
    _check_finite(p.reshape(rows, -1))
    sums = p.sum(axis=1)
    wrong = (np.abs(sums - 1) > 1e-3) | (p < -1e-6).any(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        raise ExportError(
            f"{int(wrong.sum())} of {rows} rows are no probabilities: row {first} sums to {sums[first]:.4g}, "
            f"smallest {p[first].min():.4g}",
            hint="end the exported graph with a softmax",
        )
    scaled: NDArray[np.float64] = np.clip(p, 0.0, None) / sums[:, None]
    return scaled


def interval_scores(metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """What each row adds to `coverage` (1 inside of its interval, else 0) or to `interval_width`, `(rows,)`.

    Raises:
        ExportError: `outputs` hold no intervals.
    """
    if outputs.ndim != 2 or outputs.shape[1] != 3:
        raise ExportError(
            f"outputs of shape {outputs.shape} hold no intervals, and {metric} is asked for",
            hint="set model.interval in the recipe, such as 0.9, or take the metric out of the gate",
        )
    _, low, high = outputs.astype(np.float64).T
    scores: NDArray[np.float64] = high - low if metric == "interval_width" else ((low <= y_true) & (y_true <= high)) * 1.0
    return scores


def expected_calibration_error(y: NDArray[Any], p: NDArray[np.float64]) -> float:
    """Of probabilities `(rows, classes)` against class indices `(rows,)` (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    return _calibrate(p.max(axis=1), p.argmax(axis=1) == y)[1]


def before_scaling(evaluation: Evaluation, y_true: NDArray[Any], outputs: NDArray[Any], temperature: float) -> Evaluation:
    """`evaluation` with the calibration error that the same logits would have without `temperature`.

    softmax(z / T) to the power of T is softmax(z), up to its sum.
    """
    p = as_probabilities(outputs, len(y_true))
    powers = np.exp(temperature * np.log(np.clip(p, np.finfo(np.float64).tiny, None) / p.max(axis=1, keepdims=True)))
    error = expected_calibration_error(np.asarray(y_true), powers / powers.sum(axis=1, keepdims=True))
    return evaluation.model_copy(update={"calibration_error_before": error})


def as_values(outputs: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """Checks that `outputs` are finite values `(rows,)`; of `(rows, 3)`, value with interval, the first is taken.

    Raises:
        TrainingError: no rows.
        ExportError: another shape, NaN or infinity.
    """
    values = np.asarray(outputs, dtype=np.float64)
    _check_rows(rows)
    if values.shape not in ((rows,), (rows, 1), (rows, 3)):
        raise ExportError(f"outputs of shape {values.shape} for {rows} rows; a regression gives one value a row")
    values = values.reshape(rows, -1)
    _check_finite(values)
    return values[:, 0]


def auc(y: NDArray[Any], p: NDArray[np.float64]) -> float:
    """Area under the ROC curve: of class 1 when there are two, else the mean over the classes present, one against the rest."""
    from sklearn.metrics import roc_auc_score

    present = [1] if p.shape[1] == 2 else [k for k in range(p.shape[1]) if (y == k).any()]
    if len(set(y.tolist())) < 2:
        return float("nan")
    return float(np.mean([roc_auc_score(y == k, p[:, k]) for k in present]))


def _accuracy(y: NDArray[Any], p: NDArray[np.float64]) -> float:
    return float((p.argmax(axis=1) == y).mean())


def _macro_f1(y: NDArray[Any], p: NDArray[np.float64]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, p.argmax(axis=1), average="macro", zero_division=0.0))


def _log_loss(y: NDArray[Any], p: NDArray[np.float64]) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(y, p, labels=list(range(p.shape[1]))))


def _mae(y: NDArray[Any], predicted: NDArray[np.float64]) -> float:
    return float(np.abs(predicted - y).mean())


def _rmse(y: NDArray[Any], predicted: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(predicted - y).mean()))


def _r2(y: NDArray[Any], predicted: NDArray[np.float64]) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(y, predicted)) if np.ptp(y) > 0 else float("nan")


def _check_rows(rows: int) -> None:
    if rows == 0:
        raise TrainingError(
            "there are no test rows, so nothing can be measured",
            where="data.split.test",
            hint="bring more data, or raise data.split.test in the recipe",
        )


def _check_finite(outputs: NDArray[np.float64]) -> None:
    bad = np.any(~np.isfinite(outputs), axis=1)
    if bad.any():
        raise ExportError(
            f"the model gives NaN or infinity for {int(bad.sum())} of {len(bad)} rows, first for row {int(bad.argmax())}",
            hint="lower train.learning_rate, and look for missing or huge values in the inputs",
        )


def _as_classes(y_true: NDArray[Any], classes: int, labels: Sequence[str]) -> NDArray[np.int64]:
    y = np.asarray(y_true).astype(np.int64)
    if len(labels) != classes:
        raise ExportError(f"{classes} probabilities a row, and {len(labels)} labels", where="labels")
    if y.min() < 0 or y.max() >= classes:
        wrong = int(y.min() if y.min() < 0 else y.max())
        raise TrainingError(f"class index {wrong} has no label; there are {classes} labels", where="the target column")
    return y


def _confusion(y: NDArray[np.int64], predicted: NDArray[Any], classes: int) -> list[list[int]]:
    counts: list[list[int]] = np.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist()
    return counts


def _class_scores(y: NDArray[np.int64], predicted: NDArray[Any], labels: Sequence[str]) -> list[ClassScore]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(y, predicted, labels=list(range(len(labels))), zero_division=np.nan)
    return [
        ClassScore(
            label=str(label), precision=_or_none(precision), recall=_or_none(recall), f1=_or_none(f1), support=int(support)
        )
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    ]


def _calibrate(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[list[CalibrationBin], float]:
    """Bins of the top probability, and the row-weighted mean gap between confidence and accuracy."""
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    place = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    bins = [
        CalibrationBin(
            lower=float(edges[i]),
            upper=float(edges[i + 1]),
            rows=int((place == i).sum()),
            confidence=float(confidence[place == i].mean()),
            accuracy=float(right[place == i].mean()),
        )
        for i in np.unique(place)
    ]
    return bins, float(sum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / len(right))


def slice_rows(
    slices: Mapping[str, NDArray[Any]] | None, rows: int, score: Callable[[NDArray[np.bool_]], dict[str, float]]
) -> list[SliceScore]:
    """`score` of the rows that share a value, for each value of each column (name to values `(rows,)`)."""
    found = []
    for column, values in (slices or {}).items():
        if len(values) != rows:
            raise TrainingError(f"slice {column!r} has {len(values)} values for {rows} rows", where="slices")
        for value, at in _groups(np.asarray(values)):
            found.append(SliceScore(column=column, value=value, rows=int(at.sum()), **score(at)))
    return found


def _error_scores(residual: NDArray[np.float64]) -> dict[str, float]:
    size = np.abs(residual)
    scores = {"mae": float(size.mean()), "bias": float(residual.mean())}
    return scores | {"standard_error": float(size.std(ddof=1) / np.sqrt(len(size)))} if len(size) > 1 else scores


def _coverage(scores: Mapping[str, NDArray[np.float64]], at: NDArray[np.bool_]) -> dict[str, float]:
    return {"coverage": float(scores["coverage"][at].mean())} if scores else {}


def _natural(text: str) -> tuple[bool, float, str]:
    """Sorts numbers by size (2 before 10), and before words."""
    return (False, float(text), text) if text.isdecimal() else (True, 0.0, text)


def _groups(values: NDArray[Any]) -> list[tuple[str, NDArray[np.bool_]]]:
    """The values of a slice column with the rows of each: fifths of many numbers, the most frequent of many words."""
    if np.issubdtype(values.dtype, np.number) and len(np.unique(values)) > MOST_SLICE_VALUES:
        return _fifths(values.astype(np.float64))
    import pandas as pd

    codes, found = pd.factorize(values, use_na_sentinel=False)  # texts of few distinct values: each is written once
    shown = np.array(["(none)" if v in ("", None) or v != v else str(v) for v in found.tolist()])
    names, of_value = np.unique(shown, return_inverse=True)
    place = of_value[codes].astype(np.int32)
    counts = np.bincount(place, minlength=len(names))
    kept = sorted(np.argsort(-counts, kind="stable")[:MOST_SLICE_VALUES].tolist(), key=lambda i: _natural(str(names[i])))
    groups = [(str(names[i]), place == i) for i in kept]
    rest = ~np.isin(place, kept)
    return [*groups, (f"({len(names) - len(kept)} others)", rest)] if rest.any() else groups


def _fifths(values: NDArray[np.float64]) -> list[tuple[str, NDArray[np.bool_]]]:
    missing = np.isnan(values)
    edges = np.unique(np.quantile(values[~missing], np.linspace(0, 1, 6)))
    place = np.where(missing, -1, np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2))
    groups = [(f"{low:.4g} to {high:.4g}", place == i) for i, (low, high) in enumerate(pairwise(edges))]
    return [(name, at) for name, at in [*groups, ("(none)", missing)] if at.any()]


def _or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
