"""The population stability index (PSI): how much the distribution of answers differs between two versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

MIN_EXPECTED = 5.0
"""Answers with a smaller expected count are merged into one bin (Cochran, 1954, Biometrics 10)."""


def population_stability_index(
    expected: Mapping[str, float], actual: Mapping[str, float], confidence: float
) -> tuple[float, float]:
    """Returns the index of two counts by answer, and the value that chance alone exceeds with probability 1 - `confidence`.

    The index is the sum over answers of (a - e) ln(a / e), with a and e the shares (Siddiqi, 2006, Credit Risk Scorecards,
    ch. 8; the symmetrised Kullback-Leibler divergence). For equal distributions it is (1/n + 1/m) times a chi-squared variable
    with one degree of freedom less than there are answers (Yurdakul and Naranjo, 2020, Journal of Risk Model Validation 14).
    Half an answer is added to each count, so that an answer that did not occur has a share.
    """
    n, m = sum(actual.values()), sum(expected.values())
    rare = MIN_EXPECTED / min(n, m)
    bins: dict[str | None, list[float]] = {}
    for answer in {*expected, *actual}:
        e, a = expected.get(answer, 0.0), actual.get(answer, 0.0)
        counts = bins.setdefault(answer if (e + a) / (n + m) >= rare else None, [0.0, 0.0])
        counts[0] += e
        counts[1] += a
    k = len(bins)
    shares = [((e + 0.5) / (m + k / 2), (a + 0.5) / (n + k / 2)) for e, a in bins.values()]
    index = sum((a - e) * math.log(a / e) for e, a in shares)
    return index, (1 / n + 1 / m) * _chi_squared_quantile(k - 1, confidence)


def _chi_squared_quantile(freedom: int, confidence: float) -> float:
    """Approximated by Wilson and Hilferty (1931, PNAS 17)."""
    if not freedom:
        return math.inf
    share = 2 / (9 * freedom)
    return freedom * (1 - share + NormalDist().inv_cdf(confidence) * math.sqrt(share)) ** 3
