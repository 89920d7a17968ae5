"""Drift of a window of rows from the reference profile: an effect size for each feature, the worst first.

The effect size is the total variation distance: the share of rows that would have to change their bucket for both distributions
to be equal, 0 to 1. Few rows show a distance by chance alone, so the distance that chance explains stands beside it. These
numbers describe a window; whether they are an alarm is decided over time (`headrace.monitoring.sequential`).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.monitoring.embedding_rows import embedding_values
from headrace.monitoring.features import UNKNOWN_TOKENS, Feature, Kind, Values, answer_values, column_of, input_values
from headrace.monitoring.profile import FeatureProfile, Profile
from headrace.runtime.contract import Contract
from headrace.runtime.tokenizer import Encoder

if TYPE_CHECKING:
    import pandas as pd

COARSE_BINS = 10
"""Bins of numbers for distances: deciles, as is usual for PSI."""
COARSE_LEVELS = 20
"""Categories that have a bucket of their own for distances; the rarer ones are together."""
PSI_FLOOR = 1e-4
"""Smallest share in the PSI, which is infinite for an empty bucket."""


class Bucket(BaseModel):
    """One bucket of a feature's distribution, for a table or a picture."""

    model_config = ConfigDict(frozen=True)
    name: str
    reference: float
    """Share of the training rows."""
    window: float
    """Share of the window's rows."""


class FeatureDrift(BaseModel):
    """How the values of one feature in a window differ from the reference."""

    model_config = ConfigDict(frozen=True)
    name: str
    field: str
    kind: Kind
    rows: int
    """Rows of the window; without any, every distance is None."""
    absent: bool = False
    """Whether the field is not in the window at all; all its values then count as missing."""
    total_variation: float | None = None
    """Half the sum of the differences of shares, 0 to 1."""
    expected_by_chance: float | None = None
    """The mean total variation of this many rows of an unchanged distribution (normal approximation)."""
    jensen_shannon: float | None = None
    """Jensen-Shannon distance with logarithms to base 2, 0 to 1 (Endres & Schindelin 2003)."""
    psi: float | None = None
    """Population stability index on the same buckets; by a rule of thumb more than 0.2 is a shift, which few rows reach by
    chance: its mean is (buckets − 1) × (1 / rows + 1 / training rows)."""
    missing: float | None = None
    reference_missing: float
    outside_range: float | None = None
    """Share of numbers below the smallest or above the largest of training; None for categories."""
    unseen: float | None = None
    """Share of categories that training did not know; None for numbers, and where training knew too many to list them."""
    buckets: list[Bucket] = []

    @property
    def excess(self) -> float:
        """The total variation that chance does not explain: what features are sorted by."""
        return (self.total_variation or 0.0) - (self.expected_by_chance or 0.0)


def compare(
    profile: Profile, window: pd.DataFrame, contract: Contract, outputs: Any = None, encoder: Encoder | None = None
) -> list[FeatureDrift]:
    """Compares the rows of a window with the profile; returns the features with the largest drift first.

    Args:
        window: recorded rows, in columns of the fields' names.
        outputs: the model's outputs for these rows; without them, answers are not compared.
        encoder: as for the profile; without it, unknown tokens are not compared.

    Raises:
        DataError: `outputs` do not have the contract's shape.
    """
    values = window_values(profile, window, contract, outputs, encoder)
    absent = {field.name for field in contract.inputs if column_of(window, field) is None}
    found = [
        compare_values(feature, values[feature.name], absent=feature.field in absent)
        for feature in profile.features
        if feature.name in values
    ]
    return sorted(found, key=lambda one: (-one.excess, one.name))


def window_values(
    profile: Profile, window: pd.DataFrame, contract: Contract, outputs: Any = None, encoder: Encoder | None = None
) -> dict[str, Values]:
    """Returns the values of the profile's features in a window, for `compare_values` and for `Alarm.update`."""
    embedded = {feature.name for one in profile.embeddings for feature in one.features}
    features = [
        Feature(one.name, one.field, one.kind)
        for one in profile.features
        if one.name not in embedded and (encoder is not None or not one.name.endswith(f": {UNKNOWN_TOKENS}"))
    ]
    found = input_values(window, contract, features, encoder)
    found |= embedding_values(window, contract, profile.embeddings)
    if outputs is not None:
        names = {feature.name for feature in features}
        found |= {name: values for name, values in answer_values(contract, outputs).items() if name in names}
    return found


def compare_values(feature: FeatureProfile, values: Values, *, absent: bool = False) -> FeatureDrift:
    """Compares values `(rows,)` of one feature with its reference distribution."""
    facts = {"name": feature.name, "field": feature.field, "kind": feature.kind, "reference_missing": feature.missing}
    if not len(values):
        return FeatureDrift(rows=0, absent=absent, **facts)
    names, reference, counts = (_numbers if feature.kind == "numeric" else _categories)(feature, values)
    shares = counts / len(values)
    return FeatureDrift(
        rows=len(values),
        absent=absent,
        total_variation=total_variation(reference, shares),
        expected_by_chance=chance_distance(reference, len(values), feature.rows),
        jensen_shannon=jensen_shannon(reference, shares),
        psi=population_stability(reference, shares),
        missing=float(shares[0]),
        outside_range=_outside(feature, values) if feature.kind == "numeric" else None,
        unseen=_unseen(feature, values) if feature.kind == "categorical" else None,
        buckets=[
            Bucket(name=name, reference=float(p), window=float(q)) for name, p, q in zip(names, reference, shares, strict=True)
        ],
        **facts,
    )


def total_variation(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Returns half the sum of the differences of two distributions `(buckets,)`."""
    return float(np.abs(p - q).sum() / 2)


def jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Returns the square root of the Jensen-Shannon divergence in bits of two distributions `(buckets,)`."""
    middle = (p + q) / 2
    return math.sqrt(max(0.0, (_bits(p, middle) + _bits(q, middle)) / 2))


def population_stability(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Returns the population stability index of two distributions `(buckets,)`; shares below 0.0001 count as 0.0001.

    A bucket that is empty in both is left out.
    """
    some = (p > 0) | (q > 0)
    low, high = np.maximum(p[some], PSI_FLOOR), np.maximum(q[some], PSI_FLOOR)
    return float(((high - low) * np.log(high / low)).sum())


def chance_distance(p: NDArray[np.float64], rows: int, reference_rows: int) -> float:
    """Returns the mean total variation between two samples of one distribution `(buckets,)`.

    The difference of each share is taken as normal, with mean absolute value √(2/π) standard deviations.
    """
    variance = p * (1 - p) * (1 / rows + 1 / reference_rows)
    return float(min(1.0, np.sqrt(2 / np.pi * variance).sum() / 2))


def _bits(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())


def _numbers(feature: FeatureProfile, values: Values) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Returns the names, reference shares and counts of: missing, each atom, below all bins, the coarse bins, above all
    bins."""
    atoms = np.array([value for value, _ in feature.atoms])
    atom_shares = [share for _, share in feature.atoms]
    edges, bins = _coarse(feature)
    missing = np.isnan(values)
    at_atom = np.full(len(values), -1)
    if len(atoms):
        nearest = np.clip(np.searchsorted(atoms, values), 0, len(atoms) - 1)
        at_atom = np.where(~missing & (atoms[nearest] == values), nearest, -1)
    rest = values[~missing & (at_atom < 0)]
    inside = np.bincount(np.searchsorted(edges, rest, side="right"), minlength=len(edges) + 1)
    counts = np.concatenate([[missing.sum()], np.bincount(at_atom[at_atom >= 0], minlength=len(atoms)), inside])
    return _names(atoms, edges), np.array([feature.missing, *atom_shares, *bins]), counts


def _coarse(feature: FeatureProfile) -> tuple[NDArray[np.float64], list[float]]:
    """Returns the edges and shares of about ten bins, with one of share 0 below and above; without bins, one of other
    numbers."""
    if not feature.edges:
        return np.zeros(0), [0.0]
    reached = np.cumsum(feature.bins)
    part = np.minimum((COARSE_BINS * (reached - 1e-9) / reached[-1]).astype(int), COARSE_BINS - 1)
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    shares = np.add.reduceat(np.array(feature.bins), starts).tolist()
    return np.array([*(feature.edges[i] for i in starts), feature.edges[-1]]), [0.0, *shares, 0.0]


def _names(atoms: NDArray[np.float64], edges: NDArray[np.float64]) -> list[str]:
    singles = ["missing", *(f"{value:g}" for value in atoms)]
    if not len(edges):
        return [*singles, "other numbers"]
    between = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return [*singles, f"below {edges[0]:.4g}", *between, f"above {edges[-1]:.4g}"]


def _categories(feature: FeatureProfile, values: Values) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Returns the names, reference shares and counts of: missing, each frequent category, all others."""
    levels = feature.levels[:COARSE_LEVELS]
    places = {level: i for i, level in enumerate([None, *levels])}
    found = np.array([places.get(value, len(places)) for value in values.tolist()])
    rarer = feature.other + sum(feature.level_shares[COARSE_LEVELS:])
    reference = np.array([feature.missing, *feature.level_shares[:COARSE_LEVELS], rarer])
    return ["missing", *levels, "other categories"], reference, np.bincount(found, minlength=len(reference))


def _outside(feature: FeatureProfile, values: Values) -> float:
    """Returns the share of numbers outside of the training range; without any number in training, of all numbers."""
    if feature.minimum is None or feature.maximum is None:
        return float((~np.isnan(values)).mean())
    return float(((values < feature.minimum) | (values > feature.maximum)).mean())


def _unseen(feature: FeatureProfile, values: Values) -> float | None:
    """Returns the share of categories that training did not know; None if the profile does not list all that it knew."""
    if feature.known is None and feature.other > 0:
        return None
    known = {None, *(feature.known if feature.known is not None else feature.levels)}
    return float(np.mean([value not in known for value in values.tolist()]))
