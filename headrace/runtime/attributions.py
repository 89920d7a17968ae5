"""Attributions of an answer to parts of an instance: which variations to predict, and how to evaluate them. Needs only numpy.

F: fields. M: variations, all chosen before the first prediction.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Coalitions:
    """Sets of fields with the instance's values, while the others have the baseline's: the empty set first, all fields last."""

    present: NDArray[np.bool_]
    """`(M, F)`: members of each set."""
    orders: NDArray[np.int64] | None
    """`(orders, F)`: orders in which fields join, each followed by its reverse; None if all sets are evaluated."""

    def attribute(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns Shapley values `(F,)` from the model's answers `(M,)`, and their standard errors `(F,)`.

        The values sum to the answer for all fields minus the one for none. The errors are 0 if all sets were evaluated, and
        NaN if a single pair of orders was.
        """
        if self.orders is None:
            found = _exact(values)
            return found, np.zeros_like(found)
        orders, fields = self.orders.shape
        inner = values[1:-1].reshape(orders, fields - 1)
        ends = np.ones((orders, 1))
        gains = np.diff(np.concatenate([values[0] * ends, inner, values[-1] * ends], axis=1), axis=1)
        credit = np.zeros_like(gains)
        np.put_along_axis(credit, self.orders, gains, axis=1)
        pairs = credit.reshape(orders // 2, 2, fields).mean(axis=1)
        error = pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs)) if len(pairs) > 1 else np.full(fields, np.nan)
        return pairs.mean(axis=0), error


def coalitions(fields: int, max_evaluations: int, seed: int) -> Coalitions:
    """Chooses the sets for the Shapley values of `fields` fields: at most `max_evaluations` (or one pair of orders).

    All sets if they are few enough; else the sets along random orders (Castro et al. 2009; Štrumbelj & Kononenko 2014), each
    with its reverse for smaller errors (antithetic sampling; Mitchell et al. 2022).
    """
    if fields < 63 and 2**fields <= max_evaluations:
        sets = np.arange(2**fields)[:, None] >> np.arange(fields) & 1
        return Coalitions(sets.astype(bool), None)
    pairs = max(1, (max_evaluations - 2) // (2 * (fields - 1)))
    forth = np.random.default_rng(seed).permuted(np.tile(np.arange(fields), (pairs, 1)), axis=1)
    orders = np.stack([forth, forth[:, ::-1]], axis=1).reshape(2 * pairs, fields)
    rank = np.argsort(orders, axis=1)
    joined = rank[:, None, :] < np.arange(1, fields)[None, :, None]
    none, every = np.zeros((1, fields), bool), np.ones((1, fields), bool)
    return Coalitions(np.concatenate([none, joined.reshape(-1, fields), every]), orders)


def _exact(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns Shapley values `(F,)` from the value of each set `(2 ** F,)`; the bits of an index are the set's fields."""
    fields = len(values).bit_length() - 1
    sets = np.arange(len(values))
    size = np.array([int(members).bit_count() for members in sets])
    weight = np.array([1 / (fields * math.comb(fields - 1, k)) for k in range(fields)])
    found = np.zeros(fields)
    for field in range(fields):
        without = sets[sets >> field & 1 == 0]
        found[field] = (weight[size[without]] * (values[without | 1 << field] - values[without])).sum()
    return found


def patches(height: int, width: int, patch: int) -> list[tuple[slice, slice]]:
    """Returns squares of side `patch` that cover an image, row by row; those at the right and bottom edge may be smaller."""
    return [
        (slice(top, top + patch), slice(left, left + patch))
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]


def smallest_patch(height: int, width: int, max_patches: int) -> int:
    """Returns the side of the smallest patches of which at most `max_patches` cover an image."""
    side = 1
    while math.ceil(height / side) * math.ceil(width / side) > max_patches:
        side += 1
    return side


def word_spans(text: str, max_spans: int) -> list[tuple[int, int]]:
    """Returns begin and end of each word of a text, or of runs of words if there are more than `max_spans`."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    run = max(1, math.ceil(len(words) / max_spans))
    return [(words[i][0], words[min(i + run, len(words)) - 1][1]) for i in range(0, len(words), run)]
