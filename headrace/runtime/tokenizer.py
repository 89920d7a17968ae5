"""Converts text to token ids and back with the `tokenizer.json` beside a served graph. Shared by training and serving."""

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
Feeds = dict[str, NDArray[Any]]
TOKENS_PER_RUN = 16_384
"""Most rows times length in one run of a graph, so that its memory does not grow with the request."""


class Encoder:
    """Converts texts to token ids of one vocabulary.

    Raises:
        ValueError: `tokenizer` is not a valid tokenizer.json (raised at the first use).
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
            raise ValueError(f"not a valid tokenizer.json: {error}") from None
        # A text that contains "[PAD]" or "[EOS]" is plain text; only this code adds the special tokens.
        found.encode_special_tokens = True
        return found

    @property
    def vocabulary(self) -> int:
        """Number of tokens, the special ones included."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def unknown(self) -> int:
        """The id of what is not in the vocabulary; a vocabulary that was learned elsewhere may have its own."""
        found = self._tokenizer.token_to_id(SPECIAL[UNKNOWN])
        return UNKNOWN if found is None else int(found)

    def tokens(self, text: str) -> list[int]:
        """Returns the ids of one text, without padding, start or end."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, texts: Sequence[str], length: int) -> NDArray[np.int64]:
        """Returns ids of each text, truncated to `length` and padded, `(rows, longest)`; at least one column."""
        return padded(self.truncate(texts, length))

    def truncate(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Returns at most `length` ids of each text."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids[:length] for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids`, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream_decoder(self) -> Callable[[int], str]:
        """Returns a function that decodes a text id by id: the characters that each id completes, often none or several."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""

    def tokens_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Returns the ids of `tokens`, and for each the offset of its first character in `text`."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, [start for start, _ in found.offsets]


def padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Pads rows to `(rows, longest)`; at least one column."""
    ids = np.full((len(rows), max([1, *map(len, rows)])), PAD, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def run_by_length(rows: Sequence[Sequence[int]], run: Callable[[NDArray[np.int64]], NDArray[Any]]) -> NDArray[Any]:
    """Returns the output of `run` for the token ids of each row, in the order of `rows`.

    Rows of similar length run together, so that little padding is needed: at most `TOKENS_PER_RUN`, or one longer row.
    """
    return _run_parts(rows, lambda part: run(padded([rows[i] for i in part])))


def run_with_text(feeds: Feeds, name: str, rows: Sequence[Sequence[int]], run: Callable[[Feeds], NDArray[Any]]) -> NDArray[Any]:
    """Returns the output of `run` for `feeds`, in which the token ids of each row replace the text under `name`; in parts as
    `run_by_length`."""
    return _run_parts(
        rows,
        lambda part: run({key: padded([rows[i] for i in part]) if key == name else feeds[key][part] for key in feeds}),
    )


def _run_parts(rows: Sequence[Sequence[int]], run: Callable[[list[int]], NDArray[Any]]) -> NDArray[Any]:
    """Returns the output of `run` for parts of the rows, given by their numbers, in the order of `rows`."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts: list[list[int]] = [[]]
    for i in order:  # in rising order, so row i is the longest so far
        if parts[-1] and (len(parts[-1]) + 1) * len(rows[i]) > TOKENS_PER_RUN:
            parts.append([])
        parts[-1].append(i)
    answers = np.concatenate([run(part) for part in parts])
    return answers[np.argsort(order)]
