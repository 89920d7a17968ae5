"""Beam search: against every text there is, against greedy search, and row by row."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.runtime.beam_search import StepFunction, beam_search, one_line
from headrace.runtime.tokenizer import END, PAD, START, UNKNOWN

VOCABULARY = 7
WORDS = range(END + 1, VOCABULARY)


class Toy:
    """Rows of random log-probabilities that depend on the two last tokens and on how many there are."""

    def __init__(self, rows: int, seed: int) -> None:
        logits = np.random.default_rng(seed).normal(0, 2, (rows, 9, VOCABULARY, VOCABULARY, VOCABULARY))
        self.table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def step(self) -> StepFunction:
        before: NDArray[np.int64] | None = None
        last: NDArray[np.int64] | None = None
        length = -1

        def advance(tokens: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
            nonlocal before, last, length
            before = np.full_like(tokens, PAD) if parents is None or last is None else np.take_along_axis(last, parents, 1)
            last, length = tokens, length + 1
            row = np.arange(len(tokens))[:, None]
            found: NDArray[np.float32] = self.table[row, length, before, tokens].astype(np.float32)
            return found

        return advance

    def log_probability(self, row: int, text: tuple[int, ...]) -> float:
        """Of the text with its end."""
        tokens = (PAD, START, *text, END)
        return float(sum(self.table[row, i, tokens[i], tokens[i + 1], tokens[i + 2]] for i in range(len(text) + 1)))


def every_text(longest: int) -> list[tuple[int, ...]]:
    return [text for length in range(longest + 1) for text in product(WORDS, repeat=length)]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_an_exhaustive_beam_finds_the_best_text(penalty: float) -> None:
    toy, longest = Toy(rows=5, seed=1), 3
    found = beam_search(toy.step(), 5, beams=len(every_text(longest)), longest=longest, length_penalty=penalty)
    for row, one in enumerate(found):
        scores = {t: toy.log_probability(row, t) / ((5 + len(t) + 1) / 6) ** penalty for t in every_text(longest)}
        best = max(scores, key=lambda text: scores[text])
        assert tuple(one.tokens) == best
        assert one.score == pytest.approx(scores[best], abs=1e-5)


def test_one_beam_is_greedy_search() -> None:
    toy, longest = Toy(rows=20, seed=2), 6
    for row, one in enumerate(beam_search(toy.step(), 20, beams=1, longest=longest, length_penalty=1.0)):
        text: list[int] = []
        before, last = PAD, START
        while len(text) < longest:
            allowed = toy.table[row, len(text), before, last].copy()
            allowed[[PAD, UNKNOWN, START]] = -np.inf
            token = int(allowed.argmax())
            if token == END:
                break
            text.append(token)
            before, last = last, token
        assert one.tokens == text


def test_rows_are_searched_independently() -> None:
    toy = Toy(rows=6, seed=3)
    together = beam_search(toy.step(), 6, beams=3, longest=5, length_penalty=1.0)
    for row in range(6):
        alone = Toy(rows=1, seed=0)
        alone.table = toy.table[row : row + 1]
        assert beam_search(alone.step(), 1, beams=3, longest=5, length_penalty=1.0) == [together[row]]


def test_two_beams_find_what_greedy_search_misses() -> None:
    """The first step prefers token 4, but only 5 leads to a likely text: 0.4 · 0.9 · 1 against 0.6 · 0.3 · 1."""

    def step(tokens: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        table = np.full((VOCABULARY, VOCABULARY), 1e-9)
        table[START, [4, 5]] = 0.6, 0.4
        table[4, [4, 5, 6]] = 0.3, 0.3, 0.3
        table[5, 6] = 0.9
        table[6, END] = 1.0
        found: NDArray[np.float32] = np.log(table[tokens]).astype(np.float32)
        return found

    greedy, wider = (beam_search(step, 1, beams, longest=4, length_penalty=0.0)[0] for beams in (1, 2))
    assert greedy.tokens[0] == 4
    assert wider.tokens == [5, 6]
    assert wider.score == pytest.approx(np.log(0.4 * 0.9), abs=1e-5)


def test_a_higher_penalty_gives_longer_texts() -> None:
    toy = Toy(rows=30, seed=4)
    lengths = [
        sum(len(one.tokens) for one in beam_search(toy.step(), 30, beams=4, longest=6, length_penalty=penalty))
        for penalty in (0.0, 1.0, 4.0)
    ]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_texts_hold_no_special_token_and_respect_the_length_limit(beams: int) -> None:
    for one in beam_search(Toy(rows=30, seed=5).step(), 30, beams, longest=4, length_penalty=1.0):
        assert len(one.tokens) <= 4 and set(one.tokens) <= set(WORDS)
        assert np.isfinite(one.score)


def test_ties_are_broken_the_same_way_each_time() -> None:
    def flat(tokens: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        return np.full((*tokens.shape, VOCABULARY), -np.log(VOCABULARY), dtype=np.float32)

    one, other = (beam_search(flat, 3, beams=3, longest=4, length_penalty=1.0) for _ in range(2))
    assert one == other and one[0] == one[1] == one[2]


def test_a_text_on_one_line_has_single_spaces() -> None:
    assert one_line("  a\n\n\tb   c \u2003d ") == "a b c d"
    assert one_line(" \n") == ""
