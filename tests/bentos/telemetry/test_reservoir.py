"""Reservoir sampling: every item of a stream has the same chance, however the stream is cut and however often it shrinks."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from scipy.stats import chisquare

from bentos.telemetry.reservoir import Reservoir

STREAMS = 4000


def sample_of(items: int, size: int, seed: int, steps: int = 1, shrink_at: int = -1, shrink_to: int = 0) -> list[int]:
    """The indices that a reservoir holds of a stream of `items`, which come `steps` at a time."""
    reservoir = Reservoir(size, Random(seed))
    slots: dict[int, int] = {}
    for start in range(0, items, steps):
        if start == shrink_at:
            slots = {new: slots[old] for new, old in enumerate(reservoir.shrink(shrink_to))}
        for place, slot in reservoir.take(min(steps, items - start)):
            slots[slot] = start + place
    assert sorted(slots) == list(range(len(slots)))
    return sorted(slots.values())


def test_a_short_stream_is_taken_whole() -> None:
    assert sample_of(3, 5, seed=0) == [0, 1, 2]
    assert sample_of(5, 5, seed=0, steps=2) == [0, 1, 2, 3, 4]
    assert sample_of(1, 1, seed=0) == [0]


@pytest.mark.parametrize(("size", "steps"), [(1, 1), (5, 1), (5, 7), (5, 40)])
def test_every_item_is_taken_equally_often(size: int, steps: int) -> None:
    counts = np.zeros(40)
    for seed in range(STREAMS):
        found = sample_of(40, size, seed, steps)
        assert len(set(found)) == size
        counts[found] += 1
    assert chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("shrink_at", [2, 6, 20])
def test_every_item_is_taken_equally_often_after_the_reservoir_shrank(shrink_at: int) -> None:
    counts = np.zeros(40)
    for seed in range(STREAMS):
        found = sample_of(40, 8, seed, shrink_at=shrink_at, shrink_to=3)
        assert len(set(found)) == 3
        counts[found] += 1
    assert chisquare(counts).pvalue > 0.001


def test_few_items_of_a_long_stream_are_looked_at() -> None:
    reservoir, taken = Reservoir(100, Random(1)), 0
    for _ in range(1000):
        taken += sum(1 for _ in reservoir.take(1000))
    assert reservoir.seen == 1_000_000
    assert taken == pytest.approx(100 * (1 + np.log(10_000)), rel=0.15)
