"""Attributions against their definition: Shapley values by all orders, and what is asked of a model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.runtime.attributions import coalitions, patches, smallest_patch, word_spans

Game = Callable[[NDArray[np.bool_]], NDArray[np.float64]]


def by_definition(game: Game, fields: int) -> NDArray[np.float64]:
    """The mean gain of each field over all orders in which fields may join (Shapley 1953)."""
    found = np.zeros(fields)
    orders = list(permutations(range(fields)))
    for order in orders:
        present = np.zeros((1, fields), bool)
        before = game(present)[0]
        for field in order:
            present[0, field] = True
            after = game(present)[0]
            found[field] += (after - before) / len(orders)
            before = after
    return found


def crooked(present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A game in which fields help and hinder one another; the last has no part in it."""
    x = present.astype(float)
    found: NDArray[np.float64] = (
        3 * x[:, 0] + x[:, 0] * x[:, 1] - 2 * x[:, 1] * x[:, 2] * x[:, 3] + np.sin(x[:, 2] + 2 * x[:, 3]) + 0.5
    )
    return found


def test_few_fields_get_their_shapley_values_exactly() -> None:
    asked = coalitions(5, 32, seed=0)
    assert asked.orders is None and len(asked.present) == 32
    found, error = asked.attribute(crooked(asked.present))
    assert found == pytest.approx(by_definition(crooked, 5), abs=1e-12)
    assert found[4] == 0 and not error.any()


@pytest.mark.parametrize("seed", range(5))
def test_sampled_values_are_within_their_stated_errors(seed: int) -> None:
    asked = coalitions(5, 31, seed)
    assert asked.orders is not None and len(asked.present) <= 31
    asked = coalitions(5, 2000, seed)
    assert asked.orders is None
    weights = np.random.default_rng(seed).normal(size=(12, 12))

    def game(present: NDArray[np.bool_]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.einsum("mi,ij,mj->m", present, weights, present)
        return found

    exact = weights.sum(axis=0) / 2 + weights.sum(axis=1) / 2  # pairs share their part evenly
    sampled = coalitions(12, 2000, seed)
    assert sampled.orders is not None and len(sampled.present) <= 2000
    found, error = sampled.attribute(game(sampled.present))
    assert found.sum() == pytest.approx(weights.sum())
    assert found == pytest.approx(exact, abs=1e-9), "an order and its reverse tell all of a game of pairs"
    assert (error < 1e-9).all()


def test_attributions_sum_to_the_difference_for_any_number_of_permutations() -> None:
    for most in (4, 20, 60):
        asked = coalitions(6, most, seed=3)
        values = np.random.default_rng(most).normal(size=len(asked.present))
        found, error = asked.attribute(values)
        assert found.sum() == pytest.approx(values[-1] - values[0])
        assert np.isnan(error).all() == (most < 22)


def test_errors_shrink_with_more_permutations_and_cover_the_truth() -> None:
    def game(present: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.exp(present @ np.linspace(-1, 1, 8)) * (present[:, 0] | present[:, 7])

    exact = by_definition(game, 8)
    off = []
    for seed in range(20):
        asked = coalitions(8, 200, seed)
        found, error = asked.attribute(game(asked.present))
        off.append((found - exact) / error)
    assert np.abs(off).mean() < 1.5
    wide = coalitions(8, 30, 0).attribute(game(coalitions(8, 30, 0).present))[1].mean()
    assert error.mean() < wide


def test_a_single_field_gets_the_whole_attribution_and_a_seed_is_reproducible() -> None:
    found, _ = coalitions(1, 4, 0).attribute(np.array([2.0, 5.0]))
    assert found.tolist() == [3]
    one, two, other = (coalitions(30, 100, seed).present for seed in (1, 1, 2))
    assert (one == two).all() and not (one == other).all()


def test_patches_cover_an_image_exactly_once() -> None:
    covered = np.zeros((7, 5), int)
    for place in patches(7, 5, 2):
        covered[place] += 1
    assert (covered == 1).all() and len(patches(7, 5, 2)) == 12
    assert smallest_patch(28, 28, 784) == 1 and smallest_patch(28, 28, 783) == 2 and smallest_patch(28, 28, 1) == 28


def test_words_are_located_and_grouped_when_there_are_many() -> None:
    assert word_spans(" żółw, 👍 on", 9) == [(1, 6), (7, 8), (9, 11)]
    assert word_spans("a b c d e", 2) == [(0, 5), (6, 9)]
    assert word_spans("", 2) == word_spans(" \n", 2) == []
