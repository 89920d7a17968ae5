"""Row-wise metrics, for tasks that predict neither classes nor values: means, or ratios of sums, over the rows.

Each row contributes a score, `(rows,)`, whose mean is the metric (ROUGE-L of each summary), or an amount and a weight,
`(rows, 2)`: the metric is the sum of amounts divided by the sum of weights (bits and characters of each passage).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError, TrainingError
from headrace.evaluation.metrics import Evaluation, slice_rows

Floats = NDArray[np.float64]


def as_contributions(contributions: NDArray[Any], rows: int | None = None) -> Floats:
    """Returns contributions as amounts and weights, `(rows, 2)`; a plain score has weight 1.

    Raises:
        TrainingError: no rows.
        ExportError: another shape or number of rows, NaN, infinity, or a weight that is not positive.
    """
    found = np.asarray(contributions, dtype=np.float64)
    if found.ndim == 1:
        found = np.stack([found, np.ones_like(found)], axis=1)
    if found.ndim != 2 or found.shape[1] != 2 or (rows is not None and len(found) != rows):
        raise ExportError(f"scores of shape {np.shape(contributions)}; expected one score per row, or an amount and a weight")
    if len(found) == 0:
        raise TrainingError(
            "there are no test rows",
            where="data.split.test",
            hint="add more data, or raise data.split.test in the recipe",
        )
    bad = ~np.isfinite(found).all(axis=1) | (found[:, 1] <= 0)
    if bad.any():
        raise ExportError(
            f"{int(bad.sum())} of {len(found)} rows have no finite score, first row {int(bad.argmax())}",
            hint="lower train.learning_rate, and look for empty rows in the inputs",
        )
    return found


def ratio_of_sums(contributions: Floats) -> float:
    """Returns the metric of contributions `(rows, 2)`: the sum of amounts divided by the sum of weights."""
    return float(contributions[:, 0].sum() / contributions[:, 1].sum())


def linear_contributions(contributions: Floats) -> Floats:
    """Returns the first-order contribution of each row (the delta method): numbers `(rows,)` whose mean is the metric."""
    metric = ratio_of_sums(contributions)
    linear: Floats = metric + (contributions[:, 0] - metric * contributions[:, 1]) / contributions[:, 1].mean()
    return linear


def score_rows(
    metrics: Mapping[str, NDArray[Any]], slices: Mapping[str, NDArray[Any]] | None = None, notes: list[str] | None = None
) -> Evaluation:
    """Evaluates metrics from the contributions of each row; slices are measured by the first metric.

    `slices` maps a column's name to its values `(rows,)`.

    Raises:
        TrainingError, ExportError: as `as_contributions`.
    """
    first, *others = metrics
    main = as_contributions(metrics[first])
    found = {first: main} | {name: as_contributions(metrics[name], len(main)) for name in others}
    return Evaluation(
        task="scores",
        rows=len(main),
        metrics={name: ratio_of_sums(contributions) for name, contributions in found.items()},
        notes=notes or [],
        sliced_by=first,
        slices=slice_rows(slices, len(main), lambda at: _slice_score(main[at])),
    )


def _slice_score(contributions: Floats) -> dict[str, float]:
    score = {"score": ratio_of_sums(contributions)}
    if len(contributions) < 2:
        return score
    return score | {"standard_error": float(linear_contributions(contributions).std(ddof=1) / np.sqrt(len(contributions)))}
