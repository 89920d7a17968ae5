"""Metrics of a regression with several targets: of each target in its own unit, and their means.

y and outputs: values `(rows, targets)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError, TrainingError
from headrace.evaluation.metrics import Evaluation, regression_metric, slice_rows
from headrace.evaluation.row_metrics import as_contributions
from headrace.recipe.task_types import REGRESSION
from headrace.recipe.task_variants import of_target

Floats = NDArray[np.float64]


def score_values(
    y_true: NDArray[Any], outputs: NDArray[Any], targets: Sequence[str], slices: Mapping[str, NDArray[Any]] | None = None
) -> Evaluation:
    """Scores predicted values against true ones. Slices are measured by `scaled_mae`, which has no unit.

    `slices` maps a column's name to its values `(rows,)`.

    Raises:
        TrainingError: no rows, or NaN or infinity among the true values.
        ExportError: outputs of another shape, or with NaN or infinity.
    """
    y, predicted = _checked(y_true, outputs, targets)
    scaled = scores_by_row("scaled_mae", y, predicted, targets)
    as_contributions(scaled)
    metrics = {"scaled_mae": float(scaled.mean())}
    notes = []
    for name in REGRESSION:
        measure = regression_metric(name)
        each = [measure(y[:, i], predicted[:, i]) for i in range(len(targets))]
        metrics |= {of_target(name, target): value for target, value in zip(targets, each, strict=True)}
        metrics[name] = float(np.mean(each))
    for i, target in enumerate(targets):
        if not np.ptp(y[:, i]) > 0:
            notes.append(f"the true values of {target} do not vary, so its r2 and the mean r2 are undefined")
    return Evaluation(
        task="values",
        rows=len(y),
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
        notes=notes,
        labels=list(targets),
        sliced_by="scaled_mae",
        slices=slice_rows(slices, len(y), lambda at: _slice_score(scaled[at])),
    )


def scores_by_row(metric: str, y_true: NDArray[Any], outputs: NDArray[Any], targets: Sequence[str]) -> Floats:
    """Returns the score of each row `(rows,)`, whose mean is the metric: `mae` of all targets or of one of them, or
    `scaled_mae`, the errors in standard deviations of the true values of these rows.

    Raises:
        TrainingError, ExportError: as `score_values`, or the metric is not a mean over rows.
    """
    y, predicted = _checked(y_true, outputs, targets)
    errors = np.abs(predicted - y)
    if metric == "scaled_mae":
        std = y.std(axis=0)
        return np.asarray((errors / np.where(std > 0, std, 1.0)).mean(axis=1))
    if metric == "mae":
        return np.asarray(errors.mean(axis=1))
    names = [of_target("mae", target) for target in targets]
    if metric not in names:
        raise ExportError(f"{metric} is not a mean over rows", hint=f"compare scaled_mae, mae, {', '.join(names)}")
    return np.asarray(errors[:, names.index(metric)])


def _checked(y_true: NDArray[Any], outputs: NDArray[Any], targets: Sequence[str]) -> tuple[Floats, Floats]:
    y, predicted = np.asarray(y_true, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if predicted.shape != (len(y), len(targets)):
        raise ExportError(f"outputs of shape {predicted.shape} for {len(y)} rows with {len(targets)} targets")
    for i, target in enumerate(targets):
        if bad := int((~np.isfinite(y[:, i])).sum()):
            raise TrainingError(
                f"{bad} of {len(y)} true values are NaN or infinite",
                where=f"column {target}",
                hint=f"add {target} to data.drop_missing in the recipe, or expect its values to be present",
            )
    if not np.isfinite(predicted).all():
        raise ExportError(
            f"the model gives NaN or infinity for {int((~np.isfinite(predicted)).any(axis=1).sum())} of {len(y)} rows",
            hint="lower train.learning_rate, and look for missing or huge values in the inputs",
        )
    return y, predicted


def _slice_score(scores: Floats) -> dict[str, float]:
    found = {"score": float(scores.mean())}
    return found | {"standard_error": float(scores.std(ddof=1) / np.sqrt(len(scores)))} if len(scores) > 1 else found
