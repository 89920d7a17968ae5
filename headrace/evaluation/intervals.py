"""Confidence intervals of shares and of other metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES, FEWER_RESAMPLES = 400, 100
"""Samples of a bootstrap, and those of a table with more than `MANY_ROWS` rows."""
MANY_ROWS = 20_000


def wilson_interval(share: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval of a share that was observed in `count` cases (Wilson, 1927, JASA 22:209).

    `scipy.stats.binomtest(...).proportion_ci(method="wilson")` gives the same; importing it takes a second, which a roll-out
    and the command line would wait for, and its counts have to be integers.

    Args:
        share: 0 to 1.
        count: number of cases; without any, the interval is 0 to 1.
        confidence: two-sided, 0 to 1.
    """
    if count <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap_interval(
    measure: Callable[[NDArray[np.int64]], float],
    rows: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """Returns the percentile bootstrap interval of a metric (Efron & Tibshirani 1993, chapter 13).

    Args:
        measure: returns the metric of the rows with these numbers.
        rows: number of rows.
        groups: the group of each row, from 0, where rows belong together: whole groups are drawn.

    Returns:
        None if the metric is undefined on too many of the samples.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    members = None if groups is None else np.split(np.argsort(groups, kind="stable"), np.bincount(groups).cumsum()[:-1])
    values = []
    for _ in range(RESAMPLES if rows <= MANY_ROWS else FEWER_RESAMPLES):
        if members is None:
            drawn = rng.integers(rows, size=rows)
        else:
            drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        values.append(measure(drawn))
    found = np.array([value for value in values if math.isfinite(value)])
    if len(found) < len(values) / 2:
        return None
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
