"""The error budget of a test set: each comparison may promote wrongly by chance, and all together only as often as stated.

Comparison k spends 1/(k·(k + 1)) of the budget: a half, a sixth, a twelfth; all shares together are 1. By the union bound the
chance of any false promotion stays below the budget, however many comparisons are made and however they depend on each other
(alpha spending, Lan & DeMets 1983, Biometrika 70:659; for a series without end Foster & Stine 2008, JRSS B 70:429).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class PastComparison:
    """An earlier comparison on the test rows of the same division of the data."""

    candidate: str
    against: str | None
    """Versions of the candidate and of the champion."""
    number: int
    rows: int


def confidence_of(number: int, confidence: float) -> float:
    """Returns the confidence that comparison `number`, counted from 1, has to reach where all together have `confidence`."""
    return 1 - (1 - confidence) / (number * (number + 1))


def next_number(past: Iterable[PastComparison], candidate: str, against: str | None, rows: int) -> int:
    """Returns the number of a comparison on `rows` test rows, after those in `past`, oldest first.

    The same candidate against the same champion keeps its number: it is the same comparison. Once at least half of the rows are
    new since the count began, it begins again: this is another test set.
    """
    number, began = 0, 0
    for one in past:
        if (one.candidate, one.against) == (candidate, against):
            return one.number
        if one.number == 1:
            number, began = 1, one.rows
        else:
            number = max(number, one.number)
    return 1 if number == 0 or rows >= 2 * began else number + 1
