"""Whether a new version keeps its bounds: what it did, held against what the champion did.

Each bound is left only where chance is no explanation: an interval of 99.9 % confidence (one-sided) lies beyond it. One unlucky
request, or one slow one, sends nothing back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from headrace.recipe.serve import Bounds
from headrace.serving.gateway.envoy_stats import PoolStats

CONFIDENCE = 0.999
Z = NormalDist().inv_cdf(CONFIDENCE)
LATENCY_FLOOR_SECONDS = 0.010
"""So much above the champion's 99th percentile is never too slow: below it machines differ, not models."""
LEAST_EXPECTED = 5.0
"""Answers with a smaller expected count are judged together (Cochran, 1954, Biometrics 10)."""


@dataclass(frozen=True)
class Seen:
    """What the replicas of one pool did."""

    stats: PoolStats
    answers: Mapping[tuple[str, str], float]
    """Replica and answer to how often it was given."""

    def since(self, earlier: Seen) -> Seen:
        """What was counted after `earlier`; a replica that was started anew counts from zero."""
        answers = {
            key: count - before if count >= (before := earlier.answers.get(key, 0.0)) else count
            for key, count in self.answers.items()
        }
        return Seen(self.stats.since(earlier.stats), answers)

    @property
    def by_answer(self) -> dict[str, float]:
        """How often each answer was given, by all replicas together."""
        total: dict[str, float] = {}
        for (_, answer), count in self.answers.items():
            total[answer] = total.get(answer, 0.0) + count
        return {answer: count for answer, count in total.items() if count}


@dataclass(frozen=True)
class Reading:
    """The numbers of one look, and the bound that was left, if one was."""

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
    said: str = ""
    """In words: which bound, with which values."""

    def facts(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(self).items() if v not in (None, "")}

    def line(self) -> str:
        """As a person watches it."""
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


def judge(new: Seen, champion: Seen, bounds: Bounds) -> Reading:
    """The numbers, and the first bound that the new version has left; none with fewer requests than `min_requests`."""
    psi = stability_index(champion.by_answer, new.by_answer) if new.by_answer and champion.by_answer else None
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
        return Reading(**numbers)
    for bound, said in (
        ("error_rate", _errors(new, champion, bounds)),
        ("latency", _latency(new, champion, bounds)),
        ("distribution", _distribution(new, champion, psi, bounds)),
    ):
        if said:
            return Reading(**numbers, bound=bound, said=said)
    return Reading(**numbers)


def _errors(new: Seen, champion: Seen, bounds: Bounds) -> str | None:
    n, m = new.stats.requests, champion.stats.requests
    above = difference_at_least(new.stats.error_rate, n, champion.stats.error_rate, m)
    if above <= bounds.error_rate:
        return None
    return (
        f"{new.stats.error_rate:.1%} of {n:,} requests failed, and {champion.stats.error_rate:.1%} of the champion's; "
        f"error_rate allows {bounds.error_rate:.1%} more"
    )


def _latency(new: Seen, champion: Seen, bounds: Bounds) -> str | None:
    """The 99th percentile is above a limit when more than 1 % of the answers are: a share has an interval."""
    own, p99 = new.stats.quantile(0.99), champion.stats.quantile(0.99)
    if own is None or p99 is None or champion.stats.answers < bounds.min_requests:
        return None
    limit = max(p99 * bounds.latency, p99 + LATENCY_FLOOR_SECONDS)
    within = next((count for bound, count in new.stats.seconds if bound >= limit), new.stats.answers)
    if wilson(1 - within / new.stats.answers, new.stats.answers)[0] <= 0.01:
        return None
    return (
        f"its 99th percentile is {own * 1000:.0f} ms, and the champion's {p99 * 1000:.0f} ms; "
        f"latency allows {limit * 1000:.0f} ms ({bounds.latency:g} times)"
    )


def _distribution(new: Seen, champion: Seen, psi: tuple[float, float] | None, bounds: Bounds) -> str | None:
    if psi is None or min(sum(new.by_answer.values()), sum(champion.by_answer.values())) < bounds.min_requests:
        return None
    index, chance = psi
    if index <= max(bounds.distribution, chance):
        return None
    return (
        f"its answers are distributed otherwise than the champion's: population stability index {index:.2f}; "
        f"distribution allows {bounds.distribution:g}"
    )


def agreement_left(agreed: int, compared: int, bounds: Bounds) -> str | None:
    """Why a shadow agrees too seldom with the champion; None where it does, or where too little was compared."""
    if bounds.agreement is None or compared < bounds.min_requests:
        return None
    if wilson(agreed / compared, compared)[1] >= bounds.agreement:
        return None
    share = f"{agreed / compared:.1%} of {compared:,} requests"
    return f"it answers {share} as the champion does; agreement asks for {bounds.agreement:.1%}"


# -- statistics


def wilson(share: float, count: float) -> tuple[float, float]:
    """Score interval of a share of `count` (Wilson, 1927, JASA 22), each limit of confidence `CONFIDENCE`."""
    if count <= 0:
        return 0.0, 1.0
    spread = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    centre, scale = share + Z * Z / (2 * count), 1 + Z * Z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def difference_at_least(share: float, count: int, other: float, other_count: int) -> float:
    """Lower limit of `share - other`, from their score intervals (Newcombe, 1998, Statistics in Medicine 17, method 10)."""
    low, high = wilson(share, count)[0], wilson(other, other_count)[1]
    return share - other - math.hypot(share - low, high - other)


def stability_index(expected: Mapping[str, float], actual: Mapping[str, float]) -> tuple[float, float]:
    """The population stability index of counts by answer, and the value that chance alone stays below.

    Sum over answers of (a - e) ln(a / e), with a and e the shares (Siddiqi, 2006, Credit Risk Scorecards, ch. 8; symmetrised
    Kullback-Leibler divergence). Where nothing differs it is (1/n + 1/m) times a chi-squared variable with one degree of
    freedom less than there are answers (Yurdakul and Naranjo, 2020, Journal of Risk Model Validation 14). Half an answer is
    added to each count, so that one that nobody gave has a share.
    """
    n, m = sum(actual.values()), sum(expected.values())
    rare = LEAST_EXPECTED / min(n, m)
    bins: dict[str | None, list[float]] = {}
    for answer in {*expected, *actual}:
        e, a = expected.get(answer, 0.0), actual.get(answer, 0.0)
        found = bins.setdefault(answer if (e + a) / (n + m) >= rare else None, [0.0, 0.0])
        found[0] += e
        found[1] += a
    k = len(bins)
    shares = [((e + 0.5) / (m + k / 2), (a + 0.5) / (n + k / 2)) for e, a in bins.values()]
    index = sum((a - e) * math.log(a / e) for e, a in shares)
    return index, (1 / n + 1 / m) * _chi_squared(k - 1)


def _chi_squared(freedom: int) -> float:
    """Its quantile at `CONFIDENCE` (Wilson and Hilferty, 1931, PNAS 17)."""
    if not freedom:
        return math.inf
    share = 2 / (9 * freedom)
    return freedom * (1 - share + Z * math.sqrt(share)) ** 3
