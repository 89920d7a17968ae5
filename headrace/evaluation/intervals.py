"""Confidence intervals of shares."""

from __future__ import annotations

import math
from statistics import NormalDist


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
