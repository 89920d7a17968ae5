"""Text to token ids and back, by the `tokenizer.json` that lies beside a served graph. Shared by training and serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
"""The first tokens of every vocabulary, in the order of the ids above."""
TOKENS_PER_RUN = 16_384
"""Rows times length of what a graph answers at once, so that its memory does not grow with what a client sends."""


class Encoder:
    """Turns texts into token ids of one vocabulary.

    Raises:
        ValueError: `tokenizer` is no tokenizer.json.
    """

    def __init__(self, tokenizer: str) -> None:
        """`tokenizer` is the content of a tokenizer.json."""
        self._json = tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"no tokenizer.json: {error}") from None
        # A text that spells "[PAD]" or "[EOS]" is a text; the token itself is only ever put there by us.
        found.encode_special_tokens = True
        return found

    @property
    def vocabulary(self) -> int:
        """Number of tokens, the special ones included."""
        return int(self._tokenizer.get_vocab_size())

    def tokens(self, text: str) -> list[int]:
        """Ids of one text, without padding, start or end."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, texts: Sequence[str], length: int) -> NDArray[np.int64]:
        """`(rows, longest)`: ids of each text, cut after `length` and filled up with `PAD`; at least one column."""
        return padded(self.cut(texts, length))

    def cut(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Ids of each text, at most `length`."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids[:length] for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens leave nothing."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def decoding(self) -> Callable[[int], str]:
        """Decodes one text id by id: each call gives the characters that its id completes, often none or several."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""

    def located(self, text: str) -> tuple[list[int], list[int]]:
        """Ids as `tokens`, and for each the place in `text` of its first character."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, [start for start, _ in found.offsets]


def padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """`(rows, longest)`, filled up with `PAD`; at least one column."""
    ids = np.full((len(rows), max([1, *map(len, rows)])), PAD, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def answer_by_length(rows: Sequence[Sequence[int]], run: Callable[[NDArray[np.int64]], NDArray[Any]]) -> NDArray[Any]:
    """What `run` answers for the token ids of each row, in the order of `rows`.

    Rows of like length go together, so that little is filled up, and at most `TOKENS_PER_RUN` at once (a longer row alone).
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts: list[list[int]] = [[]]
    for i in order:  # the longest so far is the latest
        if parts[-1] and (len(parts[-1]) + 1) * len(rows[i]) > TOKENS_PER_RUN:
            parts.append([])
        parts[-1].append(i)
    answers = np.concatenate([run(padded([rows[i] for i in part])) for part in parts])
    return answers[np.argsort(order)]
