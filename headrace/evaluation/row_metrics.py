"""Metrics that are means, or quotients of sums, over the rows: for kinds that are neither classes nor values.

Parts are what each row adds: `(rows,)` scores whose mean is the metric (ROUGE-L of each summary), or `(rows, 2)` amounts and
weights, the quotient of whose sums is the metric (bits and characters of each passage).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError, TrainingError
from headrace.evaluation.metrics import Evaluation, slice_rows

Floats = NDArray[np.float64]


def as_contributions(parts: NDArray[Any], rows: int | None = None) -> Floats:
    """Parts as amounts and weights, `(rows, 2)`; a plain score has weight 1.

    Raises:
        TrainingError: no rows.
        ExportError: another shape or number of rows, NaN, infinity, or a weight that is not above zero.
    """
    found = np.asarray(parts, dtype=np.float64)
    if found.ndim == 1:
        found = np.stack([found, np.ones_like(found)], axis=1)
    if found.ndim != 2 or found.shape[1] != 2 or (rows is not None and len(found) != rows):
        raise ExportError(f"scores of shape {np.shape(parts)}; a row gives one score, or an amount and a weight")
    if len(found) == 0:
        raise TrainingError(
            "there are no test rows, so nothing can be measured",
            where="data.split.test",
            hint="bring more data, or raise data.split.test in the recipe",
        )
    bad = ~np.isfinite(found).all(axis=1) | (found[:, 1] <= 0)
    if bad.any():
        raise ExportError(
            f"{int(bad.sum())} of {len(found)} rows have no finite score, first row {int(bad.argmax())}",
            hint="lower train.learning_rate, and look for empty rows in the inputs",
        )
    return found


def ratio_of_sums(parts: Floats) -> float:
    """The metric: amounts `(rows, 2)` summed, over weights summed."""
    return float(parts[:, 0].sum() / parts[:, 1].sum())


def linear_contributions(parts: Floats) -> Floats:
    """What each row adds to the metric, to first order (the delta method): numbers `(rows,)` whose mean is the metric."""
    metric = ratio_of_sums(parts)
    linear: Floats = metric + (parts[:, 0] - metric * parts[:, 1]) / parts[:, 1].mean()
    return linear


def score_rows(
    metrics: Mapping[str, NDArray[Any]], slices: Mapping[str, NDArray[Any]] | None = None, notes: list[str] | None = None
) -> Evaluation:
    """An evaluation of metrics by the parts of each row; slices are measured by the first of them.

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
        metrics={name: ratio_of_sums(parts) for name, parts in found.items()},
        notes=notes or [],
        sliced_by=first,
        slices=slice_rows(slices, len(main), lambda at: _slice_score(main[at])),
    )


def _slice_score(parts: Floats) -> dict[str, float]:
    score = {"score": ratio_of_sums(parts)}
    if len(parts) < 2:
        return score
    return score | {"standard_error": float(linear_contributions(parts).std(ddof=1) / np.sqrt(len(parts)))}
