"""Learns a tokenizer from the training rows, with the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headrace.errors import DataError, RecipeError
from headrace.runtime.tokenizer import SPECIAL, UNKNOWN

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Replace

    from headrace.recipe.data import TextConfig


def learn_vocabulary(texts: Iterable[str], config: TextConfig) -> str:
    """Returns a tokenizer.json of at most `config.vocabulary` tokens, the special ones of `headrace.runtime.tokenizer` first.

    `words`: words that occur twice or more; `pieces`: byte-pair encoding over bytes (Sennrich et al. 2016,
    arXiv:1508.07909), which can encode any text; `characters`: one token per character.

    Raises:
        DataError: the texts contain fewer than two tokens.
    """
    tokenizer = _MAKERS[config.tokens](list(texts), config)
    learned = tokenizer.get_vocab_size() - len(SPECIAL)
    if learned < 2:
        raise DataError(
            f"the texts of the training rows contain {learned} distinct token{'' if learned == 1 else 's'}",
            where=f"column {config.column}",
            hint="set data.text.column to a column with texts, or data.text.tokens to characters",
        )
    text: str = tokenizer.to_str()
    return text


def with_replacements(tokenizer: str, config: TextConfig) -> str:
    """Returns a tokenizer.json that applies `config.replace` before all that it does to a text.

    Raises:
        RecipeError: as for a pattern of `learn_vocabulary`.
    """
    from tokenizers import Tokenizer, normalizers

    if not config.replace:
        return tokenizer
    found = Tokenizer.from_str(tokenizer)
    own = [] if found.normalizer is None else [found.normalizer]
    found.normalizer = normalizers.Sequence([_replacement(*rule) for rule in config.replace.items()] + own)
    text: str = found.to_str()
    return text


def _normalised(tokenizer: Tokenizer, config: TextConfig) -> Tokenizer:
    """Sets the normalizer. Replacements precede lower-casing, so that patterns see the text as the client wrote it."""
    from tokenizers import normalizers

    replaced = [_replacement(pattern, content) for pattern, content in config.replace.items()]
    lowercase = [normalizers.Lowercase()] if config.lowercase else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *replaced, *lowercase])
    return tokenizer


def _replacement(pattern: str, content: str) -> Replace:
    """Returns the normalizer that replaces `pattern` with `content`.

    Raises:
        RecipeError: the pattern is not a regular expression in the syntax of `tokenizers` (Oniguruma).
    """
    from tokenizers import Regex
    from tokenizers.normalizers import Replace

    try:
        return Replace(Regex(pattern), content)
    except Exception as error:  # the library raises bare exceptions
        raise RecipeError(
            f"{pattern!r} is not a valid regular expression: {error}", where="data.text.replace", hint="correct the pattern"
        ) from error


def _words(texts: list[str], config: TextConfig) -> Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = _normalised(Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN])), config)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocabulary, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _pieces(texts: list[str], config: TextConfig) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = _normalised(Tokenizer(models.BPE()), config)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _characters(texts: list[str], config: TextConfig) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = _normalised(Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN])), config)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=config.vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


_MAKERS = {"words": _words, "pieces": _pieces, "characters": _characters}
