"""Envoy's counters of each pool: requests, errors and latencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.serving.replicas.replica import Pool


@dataclass(frozen=True)
class PoolStats:
    """Counters since Envoy started, or between two points in time."""

    requests: int = 0
    """Sent to replicas; a request that was retried on another replica counts twice."""
    errors_5xx: int = 0
    """Answered with a status of 500 or above, even if a retry on another replica succeeded."""
    resets: int = 0
    """Connections reset by the replica."""
    seconds: tuple[tuple[float, int], ...] = ()
    """Upper bounds in seconds, ascending, each with the number of answers that took at most this long. Envoy updates them
    once a second."""
    refused: int = 0
    """Answered with a status of 400 to 499."""

    def since(self, earlier: PoolStats) -> PoolStats:
        """Returns what was counted after `earlier`; everything when Envoy was restarted in between."""
        if earlier.requests > self.requests:
            return self
        before = dict(earlier.seconds)
        return PoolStats(
            self.requests - earlier.requests,
            self.errors_5xx - earlier.errors_5xx,
            self.resets - earlier.resets,
            tuple((bound, count - before.get(bound, 0)) for bound, count in self.seconds),
            self.refused - earlier.refused,
        )

    @property
    def error_rate(self) -> float:
        """Share of the requests that failed, 0 to 1; 0 without requests."""
        return min(1.0, (self.errors_5xx + self.resets) / self.requests) if self.requests else 0.0

    @property
    def refused_rate(self) -> float:
        """Share of the requests that were refused, 0 to 1; 0 without requests."""
        return min(1.0, self.refused / self.requests) if self.requests else 0.0

    @property
    def answers(self) -> int:
        """The number of answers in `seconds`."""
        return self.seconds[-1][1] if self.seconds else 0

    def quantile(self, q: float) -> float | None:
        """Returns the latency, in seconds, below which a share `q` of the answers is; interpolated, None without answers."""
        if not self.answers:
            return None
        rank, low, below = q * self.answers, 0.0, 0
        for bound, count in self.seconds:
            if count >= rank and count > below:
                return low + (bound - low) * (rank - below) / (count - below)
            low, below = bound, count
        return low


def read(stats: list[dict[str, Any]], names: Mapping[Pool, tuple[str, str]]) -> dict[Pool, PoolStats]:
    """Parses Envoy's `/stats?format=json&histogram_buckets=cumulative`.

    Args:
        names: for each pool, the cluster that requests are sent to, and the cluster that answers are counted under.
    """
    counters = {str(stat["name"]): int(stat["value"]) for stat in stats if "value" in stat}
    histograms = {h["name"]: h["buckets"] for stat in stats for h in stat.get("histograms", [])}
    found: dict[Pool, PoolStats] = {}
    for pool, (sent, answered) in names.items():
        buckets = histograms.get(f"cluster.{answered}.upstream_rq_time", [])
        found[pool] = PoolStats(
            counters.get(f"cluster.{sent}.upstream_rq_total", 0),
            sum(counters.get(f"cluster.{answered}.{kind}upstream_rq_5xx", 0) for kind in ("", "retry.")),
            counters.get(f"cluster.{sent}.upstream_rq_rx_reset", 0),
            tuple((float(b["upper_bound"]) / 1000, int(b["cumulative"])) for b in buckets),
            counters.get(f"cluster.{answered}.upstream_rq_4xx", 0),
        )
    return found
