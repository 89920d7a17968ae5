"""Decoding: hand-worked draws, what a stop text and half a character do, bits of a bigram model, a cache that forgets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from scipy import stats

from headrace.recipe.data import TextConfig
from headrace.runtime.generation import (
    SamplingParams,
    StepLayout,
    StepRunner,
    TextChunk,
    TextGenerator,
    TextWriter,
    likeliest_first,
    sample_token,
)
from headrace.runtime.tokenizer import END, PAD, START, UNKNOWN, Encoder
from headrace.task_types.vocabulary import learn_vocabulary
from tests.tiny_models import BIGRAMS, language_model

A, B, C, SPACE = 4, 5, 6, 7


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> TextGenerator:
    return opened(language_model(tmp_path_factory.mktemp("letters")))


def opened(folder: Path) -> TextGenerator:
    return TextGenerator(folder, onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]))


def logits(*probabilities: float) -> np.ndarray:
    """Of the tokens from END on; those that are never written come first, and would be the likeliest."""
    return np.array([9.0, 9.0, 9.0, *np.log(probabilities)], dtype=np.float32)


def draws(writing: SamplingParams, given: np.ndarray, count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.bincount([sample_token(given, writing, rng) for _ in range(count)], minlength=len(given))


def write(language: TextGenerator, prompt: str, **writing: object) -> tuple[str, str | None]:
    pieces = list(language.generate(language.prompt(prompt), SamplingParams(**writing)))  # type: ignore[arg-type]
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    return "".join(piece.text for piece in pieces), pieces[-1].finish


# -- one token ---------------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_as_often_as_the_softmax_says() -> None:
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    found = draws(SamplingParams(temperature=1.0), logits(*probabilities))
    assert found[[PAD, UNKNOWN, START]].sum() == 0
    assert stats.chisquare(found[3:], probabilities * found.sum()).pvalue > 0.01


def test_a_temperature_raises_probabilities_to_its_inverse() -> None:
    wanted = np.array([0.1, 0.2, 0.3, 0.4]) ** 2
    found = draws(SamplingParams(temperature=0.5), logits(0.1, 0.2, 0.3, 0.4))[3:]
    assert stats.chisquare(found, wanted / wanted.sum() * found.sum()).pvalue > 0.01


@pytest.mark.parametrize(
    "writing",
    [SamplingParams(temperature=0), SamplingParams(temperature=1e-30), SamplingParams(top_k=1), SamplingParams(top_p=0)],
)
def test_what_leaves_one_token_takes_the_likeliest(writing: SamplingParams) -> None:
    assert np.flatnonzero(draws(writing, logits(0.1, 0.2, 0.4, 0.3), 50)).tolist() == [5]


@pytest.mark.parametrize(
    ("writing", "kept"),
    [
        (SamplingParams(temperature=1, top_k=2), [3, 5]),
        (SamplingParams(temperature=1, top_p=0.49), [3]),
        (SamplingParams(temperature=1, top_p=0.51), [3, 5]),
        (SamplingParams(temperature=1, top_p=0.81), [3, 4, 5]),
        (SamplingParams(temperature=1, top_k=2, top_p=0.9), [3, 5]),
        (SamplingParams(temperature=1, top_k=99), [3, 4, 5]),
    ],
)
def test_only_the_likeliest_tokens_are_drawn_from(writing: SamplingParams, kept: list[int]) -> None:
    assert np.flatnonzero(draws(writing, logits(0.5, 0.2, 0.3), 500)).tolist() == kept


def test_equally_likely_tokens_come_by_number_whatever_their_sign() -> None:
    rng, numbers = np.random.default_rng(0), np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1, -np.inf], np.float32)
    for given in (rng.choice(numbers, 500), rng.normal(size=500).astype(np.float32), np.zeros(1, np.float32)):
        assert likeliest_first(given).tolist() == np.argsort(-given, kind="stable").tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_no_answer(bad: float) -> None:
    with pytest.raises(ArithmeticError, match="NaN or infinity"):
        sample_token(np.array([0, 0, 0, bad], dtype=np.float32), SamplingParams(), np.random.default_rng(0))


# -- a text ------------------------------------------------------------------------------------------------------------------


def test_the_likeliest_text_is_the_one_read_off_the_table(letters: TextGenerator) -> None:
    assert write(letters, "a", temperature=0, max_tokens=5) == ("bc ", "stop")
    assert write(letters, "a", temperature=0, max_tokens=2) == ("bc", "length")
    assert write(letters, "", temperature=0, max_tokens=1) == ("a", "length")


def test_a_seed_repeats_its_text_and_no_seed_does_not(letters: TextGenerator) -> None:
    def texts(seeds: list[int | None]) -> set[str]:
        return {write(letters, "b", temperature=2.0, max_tokens=60, seed=seed)[0] for seed in seeds}

    assert len(texts([3] * 5)) == 1
    assert len(texts([*range(5)])) > 1 and len(texts([None] * 5)) > 1


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [("c", ("b", "stop")), ("bc", ("", "stop")), ("c a", ("bc ", "stop")), ("cb", ("bc ", "stop")), (" ", ("bc", "stop"))],
)
def test_a_text_ends_before_its_stop(letters: TextGenerator, stop: str, wanted: tuple[str, str]) -> None:
    """ "c a" never comes: what was held back for it is given in the end."""
    assert write(letters, "a", temperature=0, stop=stop) == wanted


def test_what_may_become_the_stop_is_held_back_and_given_when_it_does_not(letters: TextGenerator) -> None:
    pieces = list(letters.generate(letters.prompt("a"), SamplingParams(temperature=0, stop="bc!", max_tokens=3)))
    assert pieces == [TextChunk(""), TextChunk(""), TextChunk("bc ", "length")]


def test_a_character_of_several_tokens_comes_when_it_is_whole() -> None:
    encoder = Encoder(learn_vocabulary(["plain words"], TextConfig(column="text", vocabulary=280, lowercase=False)))
    writer = TextWriter(encoder, SamplingParams(temperature=0, max_tokens=99))
    texts = []
    for token in encoder.tokens("é→a"):
        texts.append(writer.take(np.where(np.arange(280) == token, 5, 0).astype(np.float32)).text)
    assert "".join(texts) == "é→a" and texts.count("") == 3


def test_a_prompt_may_be_empty_but_no_longer_than_the_model_reads(letters: TextGenerator) -> None:
    assert letters.prompt("") == [START]
    assert letters.prompt("abca") == [A, B, C, A]
    with pytest.raises(ValueError, match="5 tokens"):
        letters.prompt("abcab")


# -- steps and bits ----------------------------------------------------------------------------------------------------------


def test_the_oldest_is_forgotten_when_a_growing_state_is_full(letters: TextGenerator) -> None:
    steps = letters.steps(rows=2)
    steps(np.array([[A, B, C], [B, B, B]]))
    fed = steps.feeds(np.array([[SPACE, A], [A, A]]))
    assert fed["past"].tolist() == [[B, C], [B, B]]


def test_a_state_that_keeps_its_shape_is_never_cut() -> None:
    class Counter:
        def run(self, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros((*feeds["tokens"].shape, 2), np.float32), feeds["seen"] + feeds["tokens"].shape[1]]

    layout = StepLayout.model_validate({"length": 3, "states": [{"name": "seen", "shape": [5]}]})
    steps = StepRunner(Counter(), layout)
    for _ in range(4):
        steps(np.ones((1, 2), dtype=np.int64))
    assert steps.feeds(np.ones((1, 1), dtype=np.int64))["seen"].tolist() == [[8.0] * 5]


def test_bits_are_those_of_the_table(letters: TextGenerator) -> None:
    def bits(before: str, after: int) -> float:
        row = np.array([-9.0, -9, -9, 6 if before == " " else -9, *map(float, BIGRAMS[before])])
        return -math.log2(np.exp(row[after]) / np.exp(row).sum())

    read = [A, B, C, SPACE, A, END]
    wanted = [bits("start", A), bits("a", B), bits("b", C), bits("c", SPACE), bits(" ", A), bits("a", END)]
    assert letters.bits(read) == pytest.approx(wanted, abs=1e-5)
    assert letters.bits([]).shape == (0,)
