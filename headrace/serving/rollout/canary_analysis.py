"""Decides whether a new version is within its bounds, by comparing its counters with the champion's.

A bound counts as left only where chance does not explain it: when an interval of 99.9 % confidence (one-sided) is beyond it. A
single failed or slow request aborts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headrace.evaluation.intervals import wilson_interval
from headrace.recipe.serve import Bounds
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.rollout.population_stability import population_stability_index

CONFIDENCE = 0.999
"""One-sided, of each limit."""
LATENCY_FLOOR_SECONDS = 0.010
"""A 99th percentile at most this much above the champion's is never too slow: smaller differences come from the machine."""


@dataclass(frozen=True)
class PoolSnapshot:
    """Counters of the replicas of one pool."""

    stats: PoolStats
    answers: Mapping[tuple[str, str], float]
    """Replica id and answer to how often the replica gave it."""

    def since(self, earlier: PoolSnapshot) -> PoolSnapshot:
        """Returns what was counted after `earlier`; a replica that was restarted counts from zero."""
        answers = {
            key: count - before if count >= (before := earlier.answers.get(key, 0.0)) else count
            for key, count in self.answers.items()
        }
        return PoolSnapshot(self.stats.since(earlier.stats), answers)

    @property
    def by_answer(self) -> dict[str, float]:
        """How often each answer was given, summed over the replicas."""
        total: dict[str, float] = {}
        for (_, answer), count in self.answers.items():
            total[answer] = total.get(answer, 0.0) + count
        return {answer: count for answer, count in total.items() if count}


@dataclass(frozen=True)
class Measurement:
    """One comparison of a new version with the champion, and the bound that was left, if any."""

    requests: int
    error_rate: float
    p99_seconds: float | None
    psi: float | None
    champion_requests: int
    champion_error_rate: float
    champion_p99_seconds: float | None
    agreement: float | None = None
    compared: int = 0
    """Requests that both answered."""
    bound: str | None = None
    reason: str = ""
    """Which bound was left, with the values, in words."""

    def facts(self) -> dict[str, Any]:
        """Returns what the journal records."""
        return {name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(self).items() if v not in (None, "")}

    def summary(self) -> str:
        """Returns one line for the console."""
        parts = [
            f"{self.requests:,} requests",
            f"errors {self.error_rate:.2%} (champion {self.champion_error_rate:.2%})",
        ]
        if self.p99_seconds is not None:
            champion = "" if self.champion_p99_seconds is None else f" ({self.champion_p99_seconds * 1000:.0f} ms)"
            parts.append(f"p99 {self.p99_seconds * 1000:.0f} ms{champion}")
        if self.psi is not None:
            parts.append(f"PSI {self.psi:.3f}")
        if self.agreement is not None:
            parts.append(f"agreement {self.agreement:.1%} of {self.compared:,}")
        return ", ".join(parts)


def analyse(new: PoolSnapshot, champion: PoolSnapshot, bounds: Bounds) -> Measurement:
    """Measures the new version and names the first bound that it left; none with fewer requests than `min_requests`."""
    psi = None
    if new.by_answer and champion.by_answer:
        psi = population_stability_index(champion.by_answer, new.by_answer, CONFIDENCE)
    numbers: dict[str, Any] = {
        "requests": new.stats.requests,
        "error_rate": new.stats.error_rate,
        "p99_seconds": new.stats.quantile(0.99),
        "psi": psi[0] if psi else None,
        "champion_requests": champion.stats.requests,
        "champion_error_rate": champion.stats.error_rate,
        "champion_p99_seconds": champion.stats.quantile(0.99),
    }
    if new.stats.requests < bounds.min_requests:
        return Measurement(**numbers)
    for bound, reason in (
        ("error_rate", _high_error_rate(new, champion, bounds)),
        ("latency", _high_latency(new, champion, bounds)),
        ("distribution", _shifted_distribution(new, champion, psi, bounds)),
    ):
        if reason:
            return Measurement(**numbers, bound=bound, reason=reason)
    return Measurement(**numbers)


def _high_error_rate(new: PoolSnapshot, champion: PoolSnapshot, bounds: Bounds) -> str | None:
    n, m = new.stats.requests, champion.stats.requests
    above = difference_at_least(new.stats.error_rate, n, champion.stats.error_rate, m)
    if above <= bounds.error_rate:
        return None
    return (
        f"{new.stats.error_rate:.1%} of {n:,} requests failed, and {champion.stats.error_rate:.1%} of the champion's; "
        f"error_rate allows {bounds.error_rate:.1%} more"
    )


def _high_latency(new: PoolSnapshot, champion: PoolSnapshot, bounds: Bounds) -> str | None:
    """The 99th percentile is above a limit when more than 1 % of the answers are: a share, which has an interval."""
    own, p99 = new.stats.quantile(0.99), champion.stats.quantile(0.99)
    if own is None or p99 is None or champion.stats.answers < bounds.min_requests:
        return None
    limit = max(p99 * bounds.latency, p99 + LATENCY_FLOOR_SECONDS)
    within = next((count for bound, count in new.stats.seconds if bound >= limit), new.stats.answers)
    if _interval(1 - within / new.stats.answers, new.stats.answers)[0] <= 0.01:
        return None
    return (
        f"its 99th percentile is {own * 1000:.0f} ms, and the champion's {p99 * 1000:.0f} ms; "
        f"latency allows {limit * 1000:.0f} ms ({bounds.latency:g} times)"
    )


def _shifted_distribution(
    new: PoolSnapshot, champion: PoolSnapshot, psi: tuple[float, float] | None, bounds: Bounds
) -> str | None:
    if psi is None or min(sum(new.by_answer.values()), sum(champion.by_answer.values())) < bounds.min_requests:
        return None
    index, chance = psi
    if index <= max(bounds.distribution, chance):
        return None
    return (
        f"the distribution of its answers differs from the champion's: population stability index {index:.2f}; "
        f"distribution allows {bounds.distribution:g}"
    )


def low_agreement(agreed: int, compared: int, bounds: Bounds) -> str | None:
    """Returns why a shadow agrees too rarely with the champion; None when it agrees, or too few requests were compared."""
    if bounds.agreement is None or compared < bounds.min_requests:
        return None
    if _interval(agreed / compared, compared)[1] >= bounds.agreement:
        return None
    share = f"{agreed / compared:.1%} of {compared:,} requests"
    return f"it agrees with the champion on {share}; agreement requires {bounds.agreement:.1%}"


# -- statistics


def _interval(share: float, count: float) -> tuple[float, float]:
    """Returns Wilson's interval, each limit of confidence `CONFIDENCE`."""
    return wilson_interval(share, count, 2 * CONFIDENCE - 1)


def difference_at_least(share: float, count: int, other: float, other_count: int) -> float:
    """Returns the lower limit of `share - other`, from their score intervals (Newcombe, 1998, Statistics in Medicine 17,
    method 10), of confidence `CONFIDENCE`."""
    low, high = _interval(share, count)[0], _interval(other, other_count)[1]
    return share - other - math.hypot(share - low, high - other)
