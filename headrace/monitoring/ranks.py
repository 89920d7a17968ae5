"""Buckets between order statistics of a reference sample: the probability law of new rows is known exactly.

Put the n reference values of a feature in an order that was fixed before they were seen, and break ties at random. If a new row
is exchangeable with them, it falls into each of the n + 1 gaps between them with the same probability, whatever the
distribution. A bucket is a run of gaps, and its ranks are fixed in advance: so the buckets' probabilities have the distribution
Dirichlet(gaps) (spacings of uniform order statistics, Wilks 1962, *Mathematical Statistics*, 8.7), and the buckets of one new
row after another follow Pólya's urn. This holds for atoms, categories and missing values, because ties are broken at random for
new rows too (the smoothed rank of conformal prediction, Vovk, Gammerman & Shafer 2005).

The order: missing, then numbers by size, or categories by their frequency. That frequency is counted on other rows than the
reference sample, or order and ranks would not have been fixed before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.monitoring.features import Values

EQUAL_BUCKETS = 16
"""Buckets of equal probability; those at both ends are divided further."""
TAIL = 0.01
"""Share of the reference in a bucket at either end, so that rare extremes are seen."""
NUMBER_ENDS = (TAIL, *(i / EQUAL_BUCKETS for i in range(1, EQUAL_BUCKETS)), 1 - TAIL)
"""Shares of the reference at which buckets of numbers end."""
LEAST_BUCKET = 1 / 32
"""Least share of a bucket of categories; rarer ones are in a bucket with their neighbours."""
MISSING = -np.inf
LARGEST = float(np.finfo(np.float64).max)
MAX_LEVELS = 200
"""Categories that have a place of their own in the order; others share the last one."""


class RankBuckets(BaseModel):
    """Buckets of one feature. Small: at most 20 edges and 200 categories."""

    model_config = ConfigDict(frozen=True)
    rows: int
    """Rows of the reference sample, n."""
    levels: list[str] | None = None
    """Categories in their order; None for numbers."""
    edges: list[tuple[float | None, float]]
    """The first point of each bucket but the first: its place in the order (None: missing), and its random tie-break, 0 to
    1."""
    gaps: list[int]
    """Number of gaps in each bucket; their sum is n + 1."""

    def assign(self, values: Values, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns the bucket of each value `(rows,)`. `rng` breaks ties; it must not depend on the values."""
        at, ties = self._places(values), rng.random(len(values))
        places = np.array([MISSING if place is None else place for place, _ in self.edges])
        breaks = np.array([tie for _, tie in self.edges])
        first = np.searchsorted(places, at, side="left")
        last = np.searchsorted(places, at, side="right")
        found = first.astype(np.int64)
        tied = np.flatnonzero(last > first)
        if len(tied):
            reached = (places == at[tied, None]) & (breaks <= ties[tied, None])
            found[tied] += reached.sum(axis=1)
        return found

    def count(self, values: Values, rng: np.random.Generator) -> NDArray[np.int64]:
        """Returns the number of values in each bucket `(buckets,)`."""
        return np.bincount(self.assign(values, rng), minlength=len(self.gaps)).astype(np.int64)

    def _places(self, values: Values) -> NDArray[np.float64]:
        if self.levels is None:
            return place_numbers(values)
        return place_levels(values, self.levels)


def place_numbers(values: Values) -> NDArray[np.float64]:
    """Returns the place of each number in the order: NaN before all, infinity at the ends of the finite numbers."""
    finite = np.clip(np.asarray(values, dtype=np.float64), -LARGEST, LARGEST)
    return np.where(np.isnan(finite), MISSING, finite)


def place_levels(values: Values, levels: Sequence[str]) -> NDArray[np.float64]:
    """Returns the place of each category in `levels`; others come after all of them, and None before."""
    places: dict[str | None, float] = {level: float(i) for i, level in enumerate(levels)} | {None: MISSING}
    other = float(len(levels))
    return np.array([places.get(value, other) for value in values], dtype=np.float64)


def ranks_at(shares: Sequence[float], rows: int) -> NDArray[np.int64]:
    """Returns the ranks, from 1, of the reference values that are edges: the smallest, the largest, and those at `shares`."""
    if rows == 0:
        return np.zeros(0, np.int64)
    # rounded first: 0.3 * 10 is a little more than 3
    return np.unique(np.clip(np.ceil(np.round([0, *(rows * share for share in shares), rows], 6)), 1, rows)).astype(np.int64)


def buckets_of_numbers(sample: Values, rng: np.random.Generator) -> RankBuckets:
    """Returns the buckets between order statistics of a reference sample of numbers, NaN where one is missing."""
    at, ties = place_numbers(sample), rng.random(len(sample))
    order = np.lexsort((ties, at))
    ranks = ranks_at(NUMBER_ENDS, len(sample))
    chosen = order[ranks - 1]
    return RankBuckets(rows=len(sample), edges=_edges(at[chosen], ties[chosen]), gaps=_gaps(ranks, len(sample)))


def buckets_of_levels(
    order: Mapping[str | None, int], counts: Mapping[str | None, int], rng: np.random.Generator
) -> RankBuckets:
    """Returns the buckets between order statistics of a reference sample of categories.

    Args:
        order: rows by category that give the order and where buckets end, so that about each frequent category has its own.
            They are other rows than those of `counts`.
        counts: rows of the reference sample by category; None is missing.
    """
    levels = _by_frequency(order)
    at = place_levels(np.array(list(counts), dtype=object), levels)
    totals: dict[float, int] = {}
    for place, count in zip(at.tolist(), counts.values(), strict=True):
        totals[place] = totals.get(place, 0) + count
    rows = sum(totals.values())
    ranks = ranks_at(_ends(order, levels), rows)
    places, ties, before = [], [], 0
    for place in sorted(totals):
        inside = ranks[(ranks > before) & (ranks <= before + totals[place])] - before
        places += [place] * len(inside)
        ties += _order_statistics(inside, totals[place], rng)
        before += totals[place]
    return RankBuckets(rows=rows, levels=levels, edges=_edges(np.array(places), np.array(ties)), gaps=_gaps(ranks, rows))


def _by_frequency(order: Mapping[str | None, int]) -> list[str]:
    levels = [level for level in order if level is not None]
    return sorted(levels, key=lambda level: (-order[level], level))[:MAX_LEVELS]


def _ends(order: Mapping[str | None, int], levels: list[str]) -> list[float]:
    """Returns the shares of the order's rows at which buckets end: of missing values, and of one or more categories."""
    rows, reached = max(1, sum(order.values())), order.get(None, 0)
    ends = [reached / rows]
    for level in levels:
        reached += order[level]
        if reached / rows - ends[-1] >= LEAST_BUCKET:
            ends.append(reached / rows)
    return ends


def _order_statistics(ranks: NDArray[np.int64], count: int, rng: np.random.Generator) -> list[float]:
    """Draws the values of the given ranks among `count` uniform numbers, by spacings that are exponential (Devroye 1986,
    V.3)."""
    if not len(ranks):
        return []
    spacings = rng.gamma(np.diff(np.concatenate([[0], ranks, [count + 1]])))
    found: list[float] = (np.cumsum(spacings)[:-1] / spacings.sum()).tolist()
    return found


def _edges(places: NDArray[np.float64], ties: NDArray[np.float64]) -> list[tuple[float | None, float]]:
    return [(None if place == MISSING else place, tie) for place, tie in zip(places.tolist(), ties.tolist(), strict=True)]


def _gaps(ranks: NDArray[np.int64], rows: int) -> list[int]:
    found: list[int] = np.diff(np.concatenate([[0], ranks, [rows + 1]])).tolist()
    return found
