"""Calibration after training, fitted on the validation rows: a temperature for logits, a margin for intervals."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_TEMPERATURE = 100.0


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Returns the temperature T that maximises the likelihood of the class indices `target` under softmax(logits / T) (Guo et
    al. 2017, arXiv:1706.04599).

    The loss is convex in 1/T, so there is one minimum, searched between 1/100 and 100. `logits` are `(rows, classes)`.
    """
    from scipy.optimize import minimize_scalar

    logits, target = logits.double().cpu(), target.cpu()

    def loss(inverse: float) -> float:
        return float(F.cross_entropy(logits * inverse, target))

    bounds = (1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE)
    return float(1 / minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def conformal_margin(lower: Tensor, upper: Tensor, target: Tensor, level: float) -> float:
    """Returns by how much the bounds `(rows,)` have to move outwards (inwards if negative) to contain `level` of similar rows.

    Conformalised quantile regression (Romano et al. 2019, arXiv:1905.03222, eq. 8): the (1 + 1/rows) · level quantile of each
    target's distance outside its interval. If there are too few rows for the level, it is the largest distance, with which
    intervals contain `largest_level` of similar rows and no more.
    """
    outside = torch.maximum(lower - target, target - upper).double().sort().values
    place = math.ceil((len(outside) + 1) * level)
    return float(outside[min(place, len(outside)) - 1])


def conformal_shift(errors: Tensor, level: float) -> float:
    """Returns by how much a predicted quantile has to move, for a share of `level` of similar rows to be below it.

    The quantile of the errors `(rows,)` (true minus predicted) at (1 + 1/rows) · level, outwards to the next error.
    """
    found = errors.double().sort().values
    place = (len(found) + 1) * level
    place = math.floor(place) if level < 0.5 else math.ceil(place)
    return float(found[min(max(place, 1), len(found)) - 1])


def largest_level(rows: int) -> float:
    """Returns the largest share of similar rows, 0 to 1, that intervals calibrated on this many rows contain for certain."""
    return rows / (rows + 1)


def calibration_error(probabilities: Tensor, target: Tensor) -> float:
    """Returns the expected calibration error of `(rows, classes)` probabilities for class indices, as in the evaluation."""
    from headrace.evaluation.metrics import expected_calibration_error

    return expected_calibration_error(target.cpu().numpy(), probabilities.double().cpu().numpy())
