"""Metrics of a model on the test rows: in total, by class and by slice, and the calibration of its probabilities."""

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
MAX_SLICE_VALUES = 20
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Result(BaseModel):
    """An immutable result that can be written to JSON and read again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        return cls.model_validate(fields)


class ClassScore(Result):
    """The scores of a class; a score that would divide by zero rows is None."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    """Test rows of this class."""


class SliceScore(Result):
    """The scores of the test rows that share a value of a column."""

    column: str
    value: str
    rows: int
    accuracy: float | None = None
    mae: float | None = None
    score: float | None = None
    """A row-wise metric, named by `Evaluation.sliced_by`."""
    standard_error: float | None = None
    """The standard error of `mae` or of `score`."""
    bias: float | None = None
    """Mean of prediction minus truth: above zero, predictions are too high."""
    coverage: float | None = None
    """Share of true values inside of their intervals, if the model predicts intervals."""


class CalibrationBin(Result):
    """The rows whose top probability is in `(lower, upper]`; empty bins are left out."""

    lower: float
    upper: float
    rows: int
    confidence: float
    """Mean top probability."""
    accuracy: float


class Evaluation(Result):
    """The evaluation of a model on a set of rows. A metric that is undefined on them is absent, and a note gives the reason."""

    task: Literal["classification", "regression", "scores", "multilabel", "values"]
    """`scores`: metrics that are means or quotients over rows (`headrace.evaluation.row_metrics`); `multilabel`: any number of
    labels per row; `values`: several numbers per row."""
    rows: int
    metrics: dict[str, float]
    notes: list[str] = []
    slices: list[SliceScore] = []
    sliced_by: str | None = None
    """The metric of `slices`, unless the task is classification or regression."""
    samples: list[dict[str, str]] = []
    """Answers for people to read, for example a prompt and its text."""
    labels: list[str] = []
    """Names of classes, labels or targets."""
    classes: list[ClassScore] = []
    confusion: list[list[int]] = []
    """Number of rows of true class i that were predicted as class j."""
    calibration: list[CalibrationBin] = []
    calibration_error: float | None = None
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3), 15 bins of equal width."""
    calibration_error_before: float | None = None
    """The calibration error without the temperature that was fitted on the validation rows; None without a temperature."""
    interval: float | None = None
    """Share of true values that the intervals should contain."""
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
        ExportError: outputs with NaN or infinity, or rows that are not probabilities.
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
    bins, error = calibration_bins(p.max(axis=1), predicted == y)
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
        interval: the share of true values that intervals should contain; `y_pred` is then `(rows, 3)` or more: the value, and
            the bounds from the lowest to the highest.

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
            hint="add the target to data.drop_missing in the recipe, or expect its values to be present",
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
    """Returns the metric as a function of class indices and probabilities, which gives NaN if it is undefined."""
    return {"accuracy": _accuracy, "macro_f1": _macro_f1, "auc": auc, "log_loss": _log_loss}[name]


def regression_metric(name: str) -> Callable[[NDArray[Any], NDArray[np.float64]], float]:
    """Returns the metric as a function of true and predicted values, which gives NaN if it is undefined."""
    return {"mae": _mae, "rmse": _rmse, "r2": _r2}[name]


def as_probabilities(outputs: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """Checks that `outputs` are probabilities `(rows, classes)`, and scales each row to sum to exactly 1.

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
            f"{int(wrong.sum())} of {rows} rows are not probabilities: row {first} sums to {sums[first]:.4g}, "
            f"smallest {p[first].min():.4g}",
            hint="add a softmax at the end of the exported graph",
        )
    scaled: NDArray[np.float64] = np.clip(p, 0.0, None) / sums[:, None]
    return scaled


def interval_scores(metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Returns what each row contributes to `coverage` (1 inside of its interval, else 0) or to `interval_width`, `(rows,)`.

    Raises:
        ExportError: `outputs` have no intervals.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 3:
        raise ExportError(
            f"outputs of shape {outputs.shape} have no intervals, which {metric} needs",
            hint="set model.interval in the recipe (for example 0.9), or remove the metric from the gate",
        )
    bounds: NDArray[np.float64] = outputs.astype(np.float64)
    low, high = bounds[:, 1], bounds[:, -1]
    scores: NDArray[Any] = high - low if metric == "interval_width" else ((low <= y_true) & (y_true <= high)) * 1.0
    return scores


def expected_calibration_error(y: NDArray[Any], p: NDArray[np.float64]) -> float:
    """Returns the expected calibration error of probabilities `(rows, classes)` for class indices `(rows,)` (Guo et al. 2017,
    arXiv:1706.04599, eq. 3)."""
    return calibration_bins(p.max(axis=1), p.argmax(axis=1) == y)[1]


def before_scaling(evaluation: Evaluation, y_true: NDArray[Any], outputs: NDArray[Any], temperature: float) -> Evaluation:
    """Adds the calibration error that the same logits would have without `temperature`.

    softmax(z / T) to the power of T is softmax(z), up to its sum.
    """
    p = as_probabilities(outputs, len(y_true))
    powers = np.exp(temperature * np.log(np.clip(p, np.finfo(np.float64).tiny, None) / p.max(axis=1, keepdims=True)))
    error = expected_calibration_error(np.asarray(y_true), powers / powers.sum(axis=1, keepdims=True))
    return evaluation.model_copy(update={"calibration_error_before": error})


def as_values(outputs: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """Checks that `outputs` are finite values `(rows,)`, and returns them; of values with intervals or
    quantiles, `(rows, 3)` or more, the first.

    Raises:
        TrainingError: no rows.
        ExportError: another shape, NaN or infinity.
    """
    values = np.asarray(outputs, dtype=np.float64)
    _check_rows(rows)
    has_bounds = values.ndim == 2 and len(values) == rows and values.shape[1] >= 3
    if values.shape not in ((rows,), (rows, 1)) and not has_bounds:
        raise ExportError(f"outputs of shape {values.shape} for {rows} rows; a regression gives one value per row")
    values = values.reshape(rows, -1)
    _check_finite(values)
    return values[:, 0]


def auc(y: NDArray[Any], p: NDArray[np.float64]) -> float:
    """Returns the area under the ROC curve: of class 1 if there are two, else the mean over the classes present, one against
    the rest."""
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
            "there are no test rows",
            where="data.split.test",
            hint="add more data, or raise data.split.test in the recipe",
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
        raise ExportError(f"{classes} probabilities per row, but {len(labels)} labels", where="labels")
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


def calibration_bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[list[CalibrationBin], float]:
    """Returns bins of the top probability, and the row-weighted mean difference of confidence and accuracy."""
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
    """Computes `score` for the rows that share a value, for each value of each column (name to values `(rows,)`)."""
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
    """Returns a sort key that orders numbers by size (2 before 10), before words."""
    return (False, float(text), text) if text.isdecimal() else (True, 0.0, text)


def _groups(values: NDArray[Any]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Returns the values of a slice column with their rows: fifths of many numbers, the most frequent of many words."""
    if np.issubdtype(values.dtype, np.number) and len(np.unique(values)) > MAX_SLICE_VALUES:
        return _fifths(values.astype(np.float64))
    import pandas as pd

    codes, found = pd.factorize(values, use_na_sentinel=False)  # each distinct value is formatted once
    shown = np.array(["(none)" if v in ("", None) or v != v else str(v) for v in found.tolist()])
    names, of_value = np.unique(shown, return_inverse=True)
    place = of_value[codes].astype(np.int32)
    counts = np.bincount(place, minlength=len(names))
    kept = sorted(np.argsort(-counts, kind="stable")[:MAX_SLICE_VALUES].tolist(), key=lambda i: _natural(str(names[i])))
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
