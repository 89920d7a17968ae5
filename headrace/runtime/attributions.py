"""Which parts of an instance an answer rests on: what to ask the model, and what its answers say. Numpy alone.

F: fields that share the credit. M: questions to the model. All is decided before the first question is asked.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Coalitions:
    """Sets of fields that take the instance's values while the others keep the baseline's; none first, all last."""

    present: NDArray[np.bool_]
    """`(M, F)`."""
    orders: NDArray[np.int64] | None
    """`(orders, F)`: the order in which fields join, each followed by its reverse; None where every set is asked for."""

    def attribute(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Shapley values `(F,)` from the model's answers `(M,)`, and their standard errors `(F,)`.

        They sum to the answer for all less that for none. The errors are 0 where every set was asked for, and NaN where a
        single pair of orders leaves nothing to tell them by.
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


def coalitions(fields: int, most: int, seed: int) -> Coalitions:
    """What to ask for the Shapley values of `fields` fields, at most `most` questions (or one pair of orders).

    All sets where they are few enough; else the sets along random orders (Castro et al. 2009; Štrumbelj & Kononenko 2014),
    each with its reverse, which makes for smaller errors (antithetic; Mitchell et al. 2022).
    """
    if fields < 63 and 2**fields <= most:
        sets = np.arange(2**fields)[:, None] >> np.arange(fields) & 1
        return Coalitions(sets.astype(bool), None)
    pairs = max(1, (most - 2) // (2 * (fields - 1)))
    forth = np.random.default_rng(seed).permuted(np.tile(np.arange(fields), (pairs, 1)), axis=1)
    orders = np.stack([forth, forth[:, ::-1]], axis=1).reshape(2 * pairs, fields)
    rank = np.argsort(orders, axis=1)
    joined = rank[:, None, :] < np.arange(1, fields)[None, :, None]
    none, every = np.zeros((1, fields), bool), np.ones((1, fields), bool)
    return Coalitions(np.concatenate([none, joined.reshape(-1, fields), every]), orders)


def _exact(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shapley values `(F,)` of a game given by its value for every set `(2 ** F,)`, the set's fields being its place's bits."""
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
    """Squares of `patch` pixels that cover an image, row by row; those at the right and at the bottom may be smaller."""
    return [
        (slice(top, top + patch), slice(left, left + patch))
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]


def smallest_patch(height: int, width: int, most: int) -> int:
    """The side of the smallest squares of which at most `most` cover an image."""
    side = 1
    while math.ceil(height / side) * math.ceil(width / side) > most:
        side += 1
    return side


def word_spans(text: str, most: int) -> list[tuple[int, int]]:
    """Begin and end of each word of a text; of runs of words where there would be more than `most`."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    run = max(1, math.ceil(len(words) / most))
    return [(words[i][0], words[min(i + run, len(words)) - 1][1]) for i in range(0, len(words), run)]
