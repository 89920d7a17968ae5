"""Metrics for rows with any number of labels.

y: 1 for each label of a row and 0 for the others, `(rows, labels)`. Outputs: the probability of each label, and whether it is
given (1 or 0), `(rows, 2, labels)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError
from headrace.evaluation.metrics import ClassScore, Evaluation, calibration_bins, slice_rows
from headrace.evaluation.row_metrics import as_contributions
from headrace.recipe.task_types import CALIBRATION, MULTILABEL_BY_ROW

Floats = NDArray[np.float64]
TINY = float(np.finfo(np.float32).eps)


def score_multilabel(
    y_true: NDArray[Any],
    outputs: NDArray[Any],
    labels: Sequence[str],
    slices: Mapping[str, NDArray[Any]] | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Scores the outputs; slices are measured by the Jaccard index. `slices` maps a column's name to its values `(rows,)`.

    Labels that no test row has are left out of `mean_average_precision`, and of `macro_f1` unless they are given to a row.

    Raises:
        TrainingError: no rows.
        ExportError: outputs of another shape, with NaN, or that are not probabilities.
    """
    y, probabilities, given = _checked(y_true, outputs)
    rows = {metric: _BY_ROW[metric](y, probabilities, given) for metric in sorted(MULTILABEL_BY_ROW)}
    as_contributions(rows["jaccard"])
    right, wrong, missed = (y & given).sum(axis=0), (~y & given).sum(axis=0), (y & ~given).sum(axis=0)
    bins, error = calibration_bins(probabilities.ravel(), y.ravel())
    metrics = {
        "micro_f1": _f1(right.sum(), wrong.sum(), missed.sum()),
        "macro_f1": _mean([_f1(*counts) for counts in zip(right, wrong, missed, strict=True)]),
        "mean_average_precision": _mean_average_precision(y, probabilities),
        **{metric: float(scores.mean()) for metric, scores in rows.items()},
        **dict.fromkeys(CALIBRATION, error),
    }
    absent = [label for label, count in zip(labels, y.sum(axis=0), strict=True) if not count]
    left_out = "left out of mean_average_precision and, unless given, of macro_f1"
    jaccard = rows["jaccard"]
    return Evaluation(
        task="multilabel",
        rows=len(y),
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        notes=[*notes, *([f"no test row has the label {', '.join(absent)}: {left_out}"] if absent else [])],
        sliced_by="jaccard",
        slices=slice_rows(slices, len(y), lambda at: _slice_score(jaccard[at])),
        labels=list(labels),
        classes=[
            ClassScore(
                label=label,
                precision=_ratio(right[i], right[i] + wrong[i]),
                recall=_ratio(right[i], right[i] + missed[i]),
                f1=_ratio(2 * right[i], 2 * right[i] + wrong[i] + missed[i]),
                support=int(y[:, i].sum()),
            )
            for i, label in enumerate(labels)
        ],
        calibration=bins,
        calibration_error=error,
    )


def multilabel_row_scores(metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> Floats:
    """Returns the score of each row `(rows,)`, whose mean is the metric.

    Raises:
        ExportError: as `score_multilabel`, or the metric is not a mean over rows.
    """
    if metric not in _BY_ROW:
        raise ExportError(f"{metric} is not a mean over rows", hint=f"compare {', '.join(sorted(_BY_ROW))}")
    return _BY_ROW[metric](*_checked(y_true, outputs))


def _checked(y_true: NDArray[Any], outputs: NDArray[Any]) -> tuple[NDArray[np.bool_], Floats, NDArray[np.bool_]]:
    y = np.asarray(y_true) > 0.5
    if outputs.ndim != 3 or outputs.shape != (len(y), 2, y.shape[1]):
        raise ExportError(f"outputs of shape {outputs.shape} for {len(y)} rows with {y.shape[1]} labels")
    probabilities = outputs[:, 0].astype(np.float64)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ExportError(
            "the model gives numbers that are not probabilities from 0 to 1",
            hint="lower train.learning_rate, and look for missing or huge values in the inputs",
        )
    return y, probabilities, outputs[:, 1] > 0.5


def _jaccard(y: NDArray[np.bool_], probabilities: Floats, given: NDArray[np.bool_]) -> Floats:
    """Returns common labels over all labels of truth and answer; 1 if both have none."""
    common, either = (y & given).sum(axis=1), (y | given).sum(axis=1)
    return np.asarray(np.where(either > 0, common / np.maximum(either, 1), 1.0))


def _subset_accuracy(y: NDArray[np.bool_], probabilities: Floats, given: NDArray[np.bool_]) -> Floats:
    found: Floats = (y == given).all(axis=1).astype(np.float64)
    return found


def _hamming_loss(y: NDArray[np.bool_], probabilities: Floats, given: NDArray[np.bool_]) -> Floats:
    found: Floats = (y != given).mean(axis=1)
    return found


def _log_loss(y: NDArray[np.bool_], probabilities: Floats, given: NDArray[np.bool_]) -> Floats:
    p = np.clip(np.where(y, probabilities, 1 - probabilities), TINY, 1.0)
    found: Floats = -np.log(p).mean(axis=1)
    return found


_BY_ROW = {
    "jaccard": _jaccard,
    "subset_accuracy": _subset_accuracy,
    "hamming_loss": _hamming_loss,
    "log_loss": _log_loss,
}


def _mean_average_precision(y: NDArray[np.bool_], probabilities: Floats) -> float:
    from sklearn.metrics import average_precision_score

    return _mean([float(average_precision_score(y[:, i], probabilities[:, i])) for i in np.flatnonzero(y.any(axis=0))])


def _f1(right: Any, wrong: Any, missed: Any) -> float:
    found = _ratio(2 * right, 2 * right + wrong + missed)
    return float("nan") if found is None else found


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _slice_score(scores: Floats) -> dict[str, float]:
    found = {"score": float(scores.mean())}
    return found | {"standard_error": float(scores.std(ddof=1) / np.sqrt(len(scores)))} if len(scores) > 1 else found
