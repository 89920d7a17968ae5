"""Decides whether a new version is within its bounds, by comparing its counters with the champion's.

A bound counts as left only where chance does not explain it: when an interval of 99.9 % confidence (one-sided) is beyond it. A
single failed or slow request aborts nothing. Everything is counted by request: rows of one request are often alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headrace.evaluation.intervals import wilson_interval
from headrace.recipe.serve import Bounds
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.rollout.population_stability import StabilityIndex, population_stability_index

CONFIDENCE = 0.999
"""One-sided, of each limit."""
POWER = 0.8
"""Probability with which a difference that counts as detectable is seen."""
MOST_REQUESTS = 10_000_000
LATENCY_FLOOR_SECONDS = 0.010
"""A 99th percentile at most this much above the champion's is never too slow: smaller differences come from the machine."""


@dataclass(frozen=True)
class PoolSnapshot:
    """Counters of the replicas of one pool."""

    stats: PoolStats
    no_answers: Mapping[str, float | None]
    """Replica id to how many requests its model had no finite answer to; None where the replica does not tell."""

    def since(self, earlier: PoolSnapshot) -> PoolSnapshot:
        """Returns what was counted after `earlier`; a replica that was restarted counts from zero."""
        return PoolSnapshot(
            self.stats.since(earlier.stats),
            {replica: _since(count, earlier.no_answers.get(replica)) for replica, count in self.no_answers.items()},
        )

    @property
    def counts_no_answers(self) -> bool:
        """Whether every replica tells how many requests had no finite answer."""
        return None not in self.no_answers.values()

    def error_rate(self, with_no_answers: bool) -> float:
        """Share of the requests that failed, 0 to 1; `with_no_answers` also those without a finite answer."""
        missing = sum(count or 0.0 for count in self.no_answers.values()) if with_no_answers else 0.0
        return min(1.0, self.stats.error_rate + missing / self.stats.requests) if self.stats.requests else 0.0


def _since(count: float | None, before: float | None) -> float | None:
    if count is None:
        return None
    return count - before if before is not None and count >= before else count


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
    refused_rate: float = 0.0
    champion_refused_rate: float = 0.0
    agreement: float | None = None
    compared: int = 0
    """Requests that both answered."""
    detectable_errors: float | None = None
    """With this many requests, an excess of failed requests that would have been seen with probability `POWER`."""
    detectable_slow: float | None = None
    """The same, for the share of slow answers."""
    detectable_psi: float | None = None
    """The same, for the index of two distributions of answers."""
    detectable_agreement: float | None = None
    """An agreement that would have been too low with probability `POWER`."""
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
        if self.refused_rate or self.champion_refused_rate:
            parts.append(f"refused {self.refused_rate:.2%} ({self.champion_refused_rate:.2%})")
        if self.p99_seconds is not None:
            champion = "" if self.champion_p99_seconds is None else f" ({self.champion_p99_seconds * 1000:.0f} ms)"
            parts.append(f"p99 {self.p99_seconds * 1000:.0f} ms{champion}")
        if self.psi is not None:
            parts.append(f"PSI {self.psi:.3f}")
        if self.agreement is not None:
            parts.append(f"agreement {self.agreement:.1%} of {self.compared:,}")
        return ", ".join(parts)

    def verdict(self) -> str:
        """Returns the summary of a step that passed, with the smallest faults that it would have seen."""
        seen = [
            text.format(value)
            for text, value in (
                ("{:.1%} more errors", self.detectable_errors),
                ("{:.1%} slow answers", self.detectable_slow),
                ("PSI {:.2f}", self.detectable_psi),
                ("agreement {:.1%}", self.detectable_agreement),
            )
            if value is not None
        ]
        return f"{self.summary()}; would have seen, with {POWER:.0%} probability, {', '.join(seen)}" if seen else self.summary()


Votes = Mapping[str, float]
"""Requests by answer."""


def analyse(
    new: PoolSnapshot,
    champion: PoolSnapshot,
    bounds: Bounds,
    votes: tuple[Votes, Votes] = ({}, {}),
    compares_refusals: bool = True,
) -> Measurement:
    """Measures the new version and names the first bound that it left; none with fewer requests than `min_requests`.

    Args:
        votes: what the new version and the champion answered.
        compares_refusals: whether both got requests of the same clients at the same time.
    """
    psi = None
    if votes[0] and votes[1]:
        psi = population_stability_index(votes[1], votes[0], CONFIDENCE)
    complete = new.counts_no_answers and champion.counts_no_answers
    own, other = new.error_rate(complete), champion.error_rate(complete)
    numbers: dict[str, Any] = {
        "requests": new.stats.requests,
        "error_rate": own,
        "p99_seconds": new.stats.quantile(0.99),
        "psi": psi.index if psi else None,
        "champion_requests": champion.stats.requests,
        "champion_error_rate": other,
        "refused_rate": new.stats.refused_rate,
        "champion_refused_rate": champion.stats.refused_rate,
        "champion_p99_seconds": champion.stats.quantile(0.99),
    }
    if new.stats.requests < bounds.min_requests:
        return Measurement(**numbers)
    limit = _latency_limit(new, champion, bounds)
    shifts = psi if psi and min(sum(counts.values()) for counts in votes) >= bounds.min_requests else None
    numbers |= {
        "detectable_errors": detectable_excess(other, new.stats.requests, champion.stats.requests, bounds.error_rate),
        "detectable_slow": None if limit is None else _detectable_share(new.stats.answers, _is_too_slow(new.stats.answers)),
        "detectable_psi": shifts.detectable(bounds.distribution, POWER) if shifts else None,
    }
    for bound, reason in (
        ("error_rate", _high_error_rate((own, other), (new, champion), bounds)),
        ("refused_rate", _high_refused_rate(new, champion, bounds) if compares_refusals else None),
        ("latency", _high_latency(new, champion, limit, bounds)),
        ("distribution", _shifted_distribution(shifts, bounds)),
    ):
        if reason:
            return Measurement(**numbers, bound=bound, reason=reason)
    return Measurement(**numbers)


def _high_error_rate(rates: tuple[float, float], pools: tuple[PoolSnapshot, PoolSnapshot], bounds: Bounds) -> str | None:
    (own, other), (n, m) = rates, (pool.stats.requests for pool in pools)
    if difference_at_least(own, n, other, m) <= bounds.error_rate:
        return None
    return (
        f"{own:.1%} of {n:,} requests failed, and {other:.1%} of the champion's; error_rate allows {bounds.error_rate:.1%} more"
    )


def _high_refused_rate(new: PoolSnapshot, champion: PoolSnapshot, bounds: Bounds) -> str | None:
    own, other = new.stats, champion.stats
    if difference_at_least(own.refused_rate, own.requests, other.refused_rate, other.requests) <= bounds.refused_rate:
        return None
    return (
        f"{own.refused_rate:.1%} of {own.requests:,} requests were refused (status 400 to 499), and {other.refused_rate:.1%} "
        f"of the champion's; refused_rate allows {bounds.refused_rate:.1%} more"
    )


def _latency_limit(new: PoolSnapshot, champion: PoolSnapshot, bounds: Bounds) -> float | None:
    """Returns the largest 99th percentile that is allowed, in seconds; None when too few requests were answered to compare."""
    p99 = champion.stats.quantile(0.99)
    if not new.stats.answers or p99 is None or champion.stats.answers < bounds.min_requests:
        return None
    return max(p99 * bounds.latency, p99 + LATENCY_FLOOR_SECONDS)


def _is_too_slow(answers: int) -> Callable[[int], bool]:
    """The 99th percentile is above a limit when more than 1 % of the answers are: a share, which has an interval."""
    return lambda slow: _interval(slow / answers, answers)[0] > 0.01


def _high_latency(new: PoolSnapshot, champion: PoolSnapshot, limit: float | None, bounds: Bounds) -> str | None:
    own, p99 = new.stats.quantile(0.99), champion.stats.quantile(0.99)
    if limit is None or own is None or p99 is None:
        return None
    within = next((count for bound, count in new.stats.seconds if bound >= limit), new.stats.answers)
    if not _is_too_slow(new.stats.answers)(new.stats.answers - within):
        return None
    return (
        f"its 99th percentile is {own * 1000:.0f} ms, and the champion's {p99 * 1000:.0f} ms; "
        f"latency allows {limit * 1000:.0f} ms ({bounds.latency:g} times)"
    )


def _shifted_distribution(psi: StabilityIndex | None, bounds: Bounds) -> str | None:
    if psi is None or psi.index <= max(bounds.distribution, psi.chance):
        return None
    return (
        f"the distribution of its answers differs from the champion's: population stability index {psi.index:.2f}; "
        f"distribution allows {bounds.distribution:g}"
    )


def why_not_judged(measured: Measurement, bounds: Bounds) -> str | None:
    """Returns why a step that left no bound shows nothing: it had too few requests. None when it passed."""
    n, m = measured.requests, measured.champion_requests
    if n < bounds.min_requests:
        return f"{n:,} requests came, {bounds.min_requests:,} are needed"
    wanted = bounds.error_rate + bounds.detectable
    if measured.detectable_errors is None or measured.detectable_errors <= wanted:
        return None
    needed = n
    while needed < MOST_REQUESTS:
        needed = math.ceil(needed * 1.1)
        if detectable_excess(measured.champion_error_rate, needed, needed * m / n, bounds.error_rate) <= wanted:
            break
    return (
        f"{n:,} requests came, and about {needed:,} are needed to see {bounds.detectable:.1%} more errors than error_rate "
        f"allows (detectable) with {POWER:.0%} probability"
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


def difference_at_least(share: float, count: float, other: float, other_count: float) -> float:
    """Returns the lower limit of `share - other`, from their score intervals (Newcombe, 1998, Statistics in Medicine 17,
    method 10), of confidence `CONFIDENCE`."""
    low, high = _interval(share, count)[0], _interval(other, other_count)[1]
    return share - other - math.hypot(share - low, high - other)


def detectable_excess(other: float, count: int, other_count: float, allowed: float) -> float:
    """Returns how many more of `count` requests have to fail than a share `other` of the champion's `other_count`, 0 to 1, for
    the bound `allowed` to be left with probability `POWER`."""
    failing = _detectable_share(count, lambda failed: difference_at_least(failed / count, count, other, other_count) > allowed)
    return max(0.0, failing - other)


def _detectable_share(count: int, leaves_bound: Callable[[int], bool]) -> float:
    """Returns the share of cases, 0 to 1, with which at least the smallest number out of `count` that leaves a bound is
    reached with probability `POWER`; 1 where not even all cases leave it.

    The binomial tail is inverted by Wilson's limit with a continuity correction.
    """
    if not leaves_bound(count):
        return 1.0
    low, high = 0, count  # `high` leaves the bound
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if leaves_bound(middle) else (middle + 1, high)
    return wilson_interval(max(0.0, high - 0.5) / count, count, 2 * POWER - 1)[1]


def detectable_agreement(compared: int, bounds: Bounds) -> float | None:
    """Returns the agreement, 0 to 1, below which `low_agreement` would have given a reason with probability `POWER`."""
    least = bounds.agreement
    if least is None or compared < bounds.min_requests:
        return None
    return 1 - _detectable_share(compared, lambda differing: _interval(1 - differing / compared, compared)[1] < least)
