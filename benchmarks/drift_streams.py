"""Simulated fields, hour by hour, and the rules that watch them: for the benchmark of drift alarms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.monitoring import betting
from headrace.monitoring.drift import PSI_FLOOR
from headrace.monitoring.profile import ORDER_SHARE
from headrace.monitoring.ranks import RankBuckets, buckets_of_levels, buckets_of_numbers
from headrace.monitoring.sequential import REGION_SHARE, AlarmSettings

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, bool], Floats]
"""Draws values `(rows,)` of a field, as they are in training or after a change: numbers, or indices of categories."""
HOURS_A_DAY = 24
LEVEL_SHARES = np.array([0.4, 0.2, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02])
LEVELS = np.array([f"level {i}" for i in range(len(LEVEL_SHARES) + 1)], dtype=object)
"""Names of categories; the last one is not in training."""
PSI_BINS = 10


@dataclass(frozen=True)
class Field:
    """One simulated field."""

    name: str
    draw: Draw
    categorical: bool = False


def normal(shift: float = 0.0, scale: float = 1.0) -> Draw:
    """A normal field; the change moves its mean by `shift` standard deviations and multiplies these by `scale`."""
    return lambda rng, count, changed: rng.normal(size=count) * (scale if changed else 1) + (shift if changed else 0)


def mostly_zero(rng: np.random.Generator, count: int, changed: bool) -> Floats:
    """A field that is 0 in 60 % of the rows."""
    return np.where(rng.random(count) < 0.6, 0.0, rng.exponential(size=count))


def missing(before: float, after: float) -> Draw:
    """A normal field with a share of missing values."""

    def draw(rng: np.random.Generator, count: int, changed: bool) -> Floats:
        return np.where(rng.random(count) < (after if changed else before), np.nan, rng.normal(size=count))

    return draw


def categories(level: int = 0, share: float | None = None) -> Draw:
    """A field of eight categories; the change gives `level` another share, and the others keep their proportions."""
    changed_shares = np.append(LEVEL_SHARES, 0.0)
    if share is not None:
        changed_shares *= (1 - share) / (1 - changed_shares[level])
        changed_shares[level] = share
    shares = np.append(LEVEL_SHARES, 0.0)

    def draw(rng: np.random.Generator, count: int, changed: bool) -> Floats:
        return rng.choice(len(shares), size=count, p=changed_shares if changed else shares).astype(np.float64)

    return draw


def same_hour(share: float, shift: float = 0.0) -> Draw:
    """Normal rows of one hour, drawn together, that have this share of their variance in common."""

    def draw(rng: np.random.Generator, count: int, changed: bool) -> Floats:
        own = rng.normal(size=count) * np.sqrt(1 - share)
        together: Floats = own + rng.normal() * np.sqrt(share) + (shift if changed else 0)
        return together

    return draw


def buckets_of(field: Field, training: Floats, rng: np.random.Generator) -> RankBuckets:
    """Returns the buckets that the field's profile has."""
    if not field.categorical:
        return buckets_of_numbers(training, rng)
    names = LEVELS[training.astype(int)]
    for_order = rng.random(len(names)) < ORDER_SHARE
    return buckets_of_levels(Counter(names[for_order].tolist()), Counter(names[~for_order].tolist()), rng)


def counts_of(field: Field, buckets: RankBuckets, values: Floats, rng: np.random.Generator) -> NDArray[np.int16]:
    """Returns the rows in each bucket `(hours, buckets)` of values `(hours, rows)`."""
    hours, size = len(values), len(buckets.gaps)
    flat = values.ravel()
    at = buckets.assign(LEVELS[flat.astype(int)] if field.categorical else flat, rng)
    cells = np.repeat(np.arange(hours), values.shape[1]) * size + at
    return np.bincount(cells, minlength=hours * size).reshape(hours, size).astype(np.int16)


def first_alarms(
    gaps: list[list[int]], counts: list[NDArray[np.int16]], settings: AlarmSettings, fields: int
) -> NDArray[np.int64]:
    """Returns the hour, from 1, at which each stream reaches the limit of a model with this many fields; 0 for never.

    Args:
        gaps: of each stream.
        counts: of each stream, `(hours, buckets)`.
    """
    found = np.zeros(len(gaps), np.int64)
    for size in sorted({len(one) for one in gaps}):
        members = [i for i, one in enumerate(gaps) if len(one) == size]
        together = np.array([gaps[i] for i in members], dtype=np.float64)
        found[members] = _first_alarms(together, np.stack([counts[i] for i in members], axis=1), settings, fields)
    return found


def _first_alarms(gaps: Floats, counts: NDArray[Any], settings: AlarmSettings, fields: int) -> NDArray[np.int64]:
    alpha, radius = settings.alpha, np.zeros(len(gaps))
    correlated = settings.rows == "correlated"
    if settings.tolerance or correlated:
        level, rng = alpha * REGION_SHARE / fields, np.random.default_rng(0)
        different, which = np.unique(gaps, axis=0, return_inverse=True)
        radius = np.array([betting.region_radius(one, level, rng) for one in different])[which.ravel()]
        alpha *= 1 - REGION_SHARE
    reference = betting.Reference(gaps, settings.tolerance, correlated, radius)
    evidence, found = betting.Evidence.empty(gaps), np.zeros(len(gaps), np.int64)
    for number, hour in enumerate(counts, 1):
        evidence = betting.update(evidence, reference, hour, number)
        reached = betting.log_evidence(evidence, number) >= np.log(fields / alpha)
        found = np.where((found == 0) & reached, number, found)
        if found.all():
            break
    return found


def psi(training: Floats, values: Floats, categorical: bool) -> Floats:
    """Returns the population stability index of each window `(windows,)` of values `(windows, rows)`; NaN is left out."""
    if categorical:
        edges = np.arange(len(LEVELS)) - 0.5
    else:
        edges = np.unique(np.nanquantile(training, np.linspace(0, 1, PSI_BINS + 1)[1:-1]))
    size = len(edges) + 1

    def shares(rows: Floats) -> Floats:
        at = np.searchsorted(edges, rows.ravel(), side="right") + np.repeat(np.arange(len(rows)) * (size + 1), rows.shape[1])
        at = np.where(np.isnan(rows.ravel()), np.repeat(np.arange(len(rows)) * (size + 1) + size, rows.shape[1]), at)
        counted = np.bincount(at, minlength=len(rows) * (size + 1)).reshape(len(rows), size + 1)[:, :size]
        found: Floats = np.maximum(counted / np.maximum(counted.sum(axis=1, keepdims=True), 1), PSI_FLOOR)
        return found

    p, q = shares(training[None, :]), shares(values)
    found: Floats = ((q - p) * np.log(q / p)).sum(axis=1)
    return found


def kolmogorov_smirnov(training: Floats, values: Floats) -> Floats:
    """Returns the asymptotic two-sample p-value of each window `(windows,)` of values `(windows, rows)`; NaN is left out."""
    from scipy.special import kolmogorov

    ordered = np.sort(training[~np.isnan(training)])
    found = np.ones(len(values))
    for i, window in enumerate(values):
        rows = np.sort(window[~np.isnan(window)])
        if not len(rows):
            continue
        at, place = np.unique(rows, return_index=True)
        reached = np.append(place[1:], len(rows)) / len(rows)
        above = np.abs(reached - np.searchsorted(ordered, at, side="right") / len(ordered)).max()
        below = np.abs(place / len(rows) - np.searchsorted(ordered, at, side="left") / len(ordered)).max()
        size = len(rows) * len(ordered) / (len(rows) + len(ordered))
        found[i] = kolmogorov(np.sqrt(size) * max(above, below))
    return found


def by_day(values: Floats) -> Floats:
    """Returns values `(hours, rows)` of whole days as `(days, rows)`."""
    days = len(values) // HOURS_A_DAY
    return values[: days * HOURS_A_DAY].reshape(days, -1)
