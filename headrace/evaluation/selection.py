"""How much too good the best of several models looks on the rows by which it was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 200
COVERED = 0.95


@dataclass(frozen=True)
class Corrected:
    """The score of the chosen model, corrected for having been chosen."""

    value: float
    """The score to expect on other rows like these."""
    lower: float
    upper: float
    """The middle 95 % of the scores on rows that were not drawn: of fewer rows, so that they lie apart more than those of all
    rows."""
    optimism: float
    """How much better the score on the rows of the choice is; above 0 also where lower is better."""


def corrected_for_choice(
    score: Callable[[int, NDArray[np.int64]], float],
    models: int,
    rows: int,
    is_higher_better: bool,
    seed: int = 7,
    resamples: int = RESAMPLES,
) -> Corrected | None:
    """Repeats the choice of the best of several models on rows drawn with replacement, and scores each choice on the rows that
    were not drawn: the bootstrap bias correction of Tsamardinos, Greasidou & Borboudakis 2018 (Machine Learning 107:1895), here
    for one set of validation rows; compare Tibshirani & Tibshirani 2009 (Annals of Applied Statistics 3:822).

    Args:
        score: the score of a model, 0 to `models` - 1, on the rows with these numbers; NaN where it is undefined.

    Returns:
        None if there are too few rows to resample.
    """
    rng, sign = np.random.default_rng(seed), 1.0 if is_higher_better else -1.0
    everything = np.arange(rows)
    of_all = [score(model, everything) for model in range(models)]
    best = max(range(models), key=lambda model: (sign * of_all[model], -model))
    outside: list[float] = []
    for _ in range(resamples):
        drawn = rng.integers(0, rows, rows)
        left = np.setdiff1d(everything, drawn)
        scores = [sign * score(model, drawn) for model in range(models)]
        if len(left) == 0 or not any(map(math.isfinite, scores)):
            continue
        chosen = max(range(models), key=lambda model: (scores[model] if math.isfinite(scores[model]) else -math.inf, -model))
        if math.isfinite(value := score(chosen, left)):
            outside.append(value)
    if len(outside) < resamples / 2:
        return None
    found: NDArray[Any] = np.array(outside)
    value = float(found.mean())
    tail = 100 * (1 - COVERED) / 2
    lower, upper = (float(bound) for bound in np.percentile(found, [tail, 100 - tail]))
    return Corrected(value, lower, upper, sign * (of_all[best] - value))
