"""Texts to token ids and back, and vocabularies learned from them."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import DataError, RecipeError
from headrace.recipe.data import TextConfig
from headrace.runtime.tokenizer import END, PAD, SPECIAL, START, UNKNOWN, Encoder
from headrace.task_types.vocabulary import learn_vocabulary

TEXTS = ["To be, or not to be", "that is the question", "to be the one\nor not"]


def encoder(tokens: str, vocabulary: int = 400, lowercase: bool = False, texts: list[str] = TEXTS) -> Encoder:
    config = TextConfig(column="text", tokens=tokens, vocabulary=vocabulary, lowercase=lowercase)  # type: ignore[arg-type]
    return Encoder(learn_vocabulary(texts, config))


@pytest.mark.parametrize("tokens", ["words", "pieces", "characters"])
def test_special_tokens_come_first(tokens: str) -> None:
    found = encoder(tokens)
    assert [found._tokenizer.token_to_id(name) for name in SPECIAL] == [PAD, UNKNOWN, START, END]


@pytest.mark.parametrize("tokens", ["pieces", "characters"])
def test_a_text_comes_back_as_it_was(tokens: str) -> None:
    found = encoder(tokens)
    assert [found.decode(found.tokens(text)) for text in TEXTS] == TEXTS


def test_pieces_encode_every_text() -> None:
    found = encoder("pieces")
    assert found.decode(found.tokens("żółw 龜 🐢")) == "żółw 龜 🐢"


def test_an_unknown_word_and_an_unknown_character_are_one_token() -> None:
    assert encoder("words").tokens("zebra") == [UNKNOWN]
    assert encoder("characters").tokens("龜") == [UNKNOWN]


def test_rows_are_cut_and_filled_up() -> None:
    found = encoder("characters")
    ids = found.encode(["to be or", "to", ""], 4)
    assert ids.shape == (3, 4) and ids.dtype == np.int64
    assert ids[1, 2:].tolist() == [PAD, PAD] and (ids[2] == PAD).all()
    assert found.encode([""], 4).tolist() == [[PAD]]


def test_lowercase_makes_cases_the_same() -> None:
    folded, kept = encoder("words", lowercase=True), encoder("words")
    assert folded.tokens("TO") == folded.tokens("to")
    assert kept.tokens("TO") != kept.tokens("to")


def test_replaced_text_is_not_a_token() -> None:
    links, runs = r"https?://\S+", r"(.)(?=\1\1)"
    config = TextConfig(column="text", tokens="words", vocabulary=400, replace={links: " link ", runs: ""})
    found = Encoder(learn_vocabulary(["so good http://a.b/1", "so good https://c.d/2", "soooo good"], config))
    assert found.tokens("so http://never.seen/x") == [*found.tokens("so"), *found.tokens("link")]
    assert UNKNOWN not in found.tokens("link") and found.tokens("goooooood") == found.tokens("good")


def test_an_invalid_pattern_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'\(' is not a valid regular expression.*\n?.*"):
        learn_vocabulary(TEXTS, TextConfig(column="text", tokens="words", replace={"(": ""}))


def test_the_vocabulary_is_reproducible_and_no_larger_than_requested() -> None:
    one, other = encoder("pieces", vocabulary=270), encoder("pieces", vocabulary=270)
    assert one._json == other._json
    assert one.vocabulary <= 270


def test_texts_of_one_token_are_refused() -> None:
    with pytest.raises(DataError, match="contain 1 distinct token"):
        encoder("characters", texts=["aaaa", "aa"])
    with pytest.raises(DataError, match="contain 0 distinct tokens"):
        encoder("words", texts=["", ""])


def test_a_missing_tokenizer_is_named() -> None:
    with pytest.raises(ValueError, match=r"not a valid tokenizer\.json"):
        Encoder("{}").tokens("to be")


@pytest.mark.parametrize("tokens", ["words", "pieces", "characters"])
def test_a_text_that_spells_a_special_token_is_encoded_as_plain_text(tokens: str) -> None:
    found = encoder(tokens)
    assert not {PAD, START, END} & set(found.tokens("to [PAD] be[EOS] [BOS]"))
    assert found.encode(["[PAD] to"], 99)[0, 0] != PAD
