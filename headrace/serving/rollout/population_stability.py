"""The population stability index (PSI): how much the distribution of answers differs between two versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

MIN_EXPECTED = 5.0
"""Answers with a smaller expected count are merged into one bin (Cochran, 1954, Biometrics 10)."""


@dataclass(frozen=True)
class StabilityIndex:
    """The index of two samples."""

    index: float
    chance: float
    """The value that chance alone exceeds with the probability that was asked for."""
    scale: float
    """1/n + 1/m, for samples of n and m requests."""
    freedom: int
    """Degrees of freedom: one less than there are answers."""

    def detectable(self, limit: float, power: float) -> float | None:
        """Returns the index of two distributions whose samples exceed `limit` and `chance` with probability `power`; None where
        there is one answer only.

        Divided by `scale`, the index of the samples is a noncentral chi-squared variable; approximated by a normal one with the
        same mean and variance.
        """
        if not self.freedom:
            return None
        wanted, z = max(limit, self.chance) / self.scale, NormalDist().inv_cdf(power)
        low, high = 0.0, 4 * wanted + 100.0
        for _ in range(60):
            middle = (low + high) / 2
            reached = self.freedom + middle - z * math.sqrt(2 * (self.freedom + 2 * middle)) >= wanted
            low, high = (low, middle) if reached else (middle, high)
        return high * self.scale


def population_stability_index(expected: Mapping[str, float], actual: Mapping[str, float], confidence: float) -> StabilityIndex:
    """Returns the index of two counts of requests by answer; chance alone exceeds `chance` with probability 1 - `confidence`.

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
    scale = 1 / n + 1 / m
    return StabilityIndex(index, scale * _chi_squared_quantile(k - 1, confidence), scale, k - 1)


def _chi_squared_quantile(freedom: int, confidence: float) -> float:
    """Approximated by Wilson and Hilferty (1931, PNAS 17)."""
    if not freedom:
        return math.inf
    share = 2 / (9 * freedom)
    return freedom * (1 - share + NormalDist().inv_cdf(confidence) * math.sqrt(share)) ** 3
