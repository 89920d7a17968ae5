"""Texts to summaries by beam search over the graphs of an encoder-decoder. Shared by training and serving.

R: rows. K: beams of a row. V: vocabulary. S: tokens of a source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.runtime.contract import Feeds
from headrace.runtime.tokenizer import END, START, Encoder

ENCODER, DECODER, SEARCH, TOKENIZER = "encoder.onnx", "model.onnx", "served_search.json", "tokenizer.json"
ROWS_AT_ONCE = 32
MOST_CHARACTERS_A_TOKEN = 100
"""More of a text than its length allows in tokens of this many characters is not even cut into tokens."""

Step = Callable[[NDArray[np.int64], NDArray[np.int64] | None], NDArray[np.float32]]
"""From the last tokens `(R, K)`, and the beam that each of them continues `(R, K)` (None at first), to log-probabilities
`(R, K, V)` of what follows."""


class Session(Protocol):
    """What is needed of onnxruntime's InferenceSession."""

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> list[Any]: ...


class Search(BaseModel):
    """How a model's summaries are looked for; lies beside its graphs."""

    model_config = ConfigDict(frozen=True)
    length: int
    """Most tokens of a source that are read."""
    longest: int
    """Most tokens of a summary."""
    beams: int
    length_penalty: float


@dataclass(frozen=True)
class Found:
    """The best of the texts that a search finished."""

    tokens: list[int]
    """Without start and end."""
    score: float
    """Its log-probability over its length penalty."""


def beam_search(step: Step, rows: int, beams: int, longest: int, length_penalty: float) -> list[Found]:
    """The likeliest text of at most `longest` tokens for each row, as far as `beams` at a time can see.

    A text of n tokens, its end counted, scores `log p / ((5 + n) / 6) ** length_penalty` (Wu et al. 2016, arXiv:1609.08144,
    eq. 14): a higher penalty favours longer texts, 0 leaves the bare probability. A row is done once `beams` texts ended
    among its best. One beam is greedy search.
    """
    tokens = np.full((rows, 1), START, dtype=np.int64)
    written = np.zeros((rows, 1, 0), dtype=np.int64)
    total = np.zeros((rows, 1))
    parents: NDArray[np.int64] | None = None
    best = [Found([], -np.inf)] * rows
    ended = np.zeros(rows, dtype=np.int64)

    for length in range(1, longest + 2):
        scores = total[:, :, None] + _allowed(step(tokens, parents), only_end=length > longest)
        candidates, parents_of, tokens_of = _highest(scores, 2 * beams)  # at most half of them end
        is_end = tokens_of == END
        penalty = ((5 + length) / 6) ** length_penalty
        for row, place in np.argwhere(is_end[:, :beams] & np.isfinite(candidates[:, :beams]) & (ended < beams)[:, None]):
            ended[row] += 1
            if (score := float(candidates[row, place]) / penalty) > best[row].score:
                best[row] = Found(written[row, parents_of[row, place]].tolist(), score)
        if (ended >= beams).all() or length > longest:
            break
        live = np.argsort(is_end, axis=1, kind="stable")[:, :beams]  # those that go on, best first
        parents, tokens = np.take_along_axis(parents_of, live, 1), np.take_along_axis(tokens_of, live, 1)
        total = np.take_along_axis(np.where(is_end, -np.inf, candidates), live, 1)
        written = np.concatenate([np.take_along_axis(written, parents[:, :, None], 1), tokens[:, :, None]], axis=2)
    return best


def _allowed(log_probabilities: NDArray[np.float32], only_end: bool) -> NDArray[np.float64]:
    """Forbids the special tokens but the end, and everything else where the text has to end; `(R, K, V)`."""
    allowed = np.full(log_probabilities.shape, -np.inf)
    first = slice(END, END + 1) if only_end else slice(END, None)
    allowed[:, :, first] = log_probabilities[:, :, first]
    return allowed


def _highest(scores: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The `count` highest of `(R, K, V)`, best first: scores, beams and tokens, each `(R, count)`."""
    rows, _, vocabulary = scores.shape
    flat = scores.reshape(rows, -1)
    count = min(count, flat.shape[1])
    kept = np.argpartition(flat, -count, axis=1)[:, -count:]
    kept.sort(axis=1)  # equal scores are ordered by place, whatever the partition did
    kept = np.take_along_axis(kept, np.argsort(-np.take_along_axis(flat, kept, 1), axis=1, kind="stable"), 1)
    return np.take_along_axis(flat, kept, 1), kept // vocabulary, kept % vocabulary


class GraphSteps:
    """The decoder's graph at work on `source` `(R, S)`: keeps what it remembers of the tokens before."""

    def __init__(self, encoder: Session, decoder: Session, source: NDArray[np.int64]) -> None:
        self._decoder = decoder
        memory, pointed = encoder.run(None, {"source": source})
        self._read = {"source": source, "memory": memory, "pointed": pointed}
        rows, layers, two, heads, _, width = memory.shape
        self._past = np.zeros((rows, 1, layers, two, heads, 0, width), dtype=np.float32)

    def __call__(self, tokens: NDArray[np.int64], parents: NDArray[np.int64] | None) -> NDArray[np.float32]:
        if parents is not None:
            self._past = np.take_along_axis(self._past, parents.reshape(*parents.shape, 1, 1, 1, 1, 1), 1)
        log_probabilities: NDArray[np.float32]
        log_probabilities, self._past = self._decoder.run(None, self.feeds(tokens))
        return log_probabilities

    def feeds(self, tokens: NDArray[np.int64]) -> Feeds:
        """What the decoder's graph takes next."""
        return {"tokens": tokens, **self._read, "past": self._past}


class Summariser:
    """The graphs, the tokenizer and the search of one model: what both the evaluation and the service answer with."""

    def __init__(self, folder: Path, open_graph: Callable[[Path], Session]) -> None:
        """`folder` holds the four files named above; `open_graph` opens a graph for ONNX Runtime.

        Raises:
            OSError, ValueError: a file is missing or is not what it should be.
        """
        if missing := [name for name in (ENCODER, DECODER, SEARCH, TOKENIZER) if not (folder / name).is_file()]:
            raise FileNotFoundError(f"there is no {missing[0]} in {folder}")
        self._sessions = (open_graph(folder / ENCODER), open_graph(folder / DECODER))
        self._encoder = Encoder((folder / TOKENIZER).read_text(encoding="utf-8"))
        self._search = Search.model_validate_json((folder / SEARCH).read_text(encoding="utf-8"))

    def summarise(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """A summary of each text, and the score of its tokens as `beam_search` gives it; in order."""
        starts = range(0, len(texts), ROWS_AT_ONCE)
        return [answer for start in starts for answer in self._summarise(texts[start : start + ROWS_AT_ONCE])]

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """`(rows, S)`: a source that is all padding is a text without a single token."""
        return encode_source(self._encoder, texts, self._search.length)

    def _summarise(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        search = self._search
        step = GraphSteps(*self._sessions, self.encode(texts))
        found = beam_search(step, len(texts), search.beams, search.longest, search.length_penalty)
        return [(self._encoder.decode(one.tokens).strip(), one.score) for one in found]


def one_line(text: str) -> str:
    """The text with one space for each stretch of white space."""
    return " ".join(text.split())


def encode_source(encoder: Encoder, texts: Sequence[str], length: int) -> NDArray[np.int64]:
    """Ids of the first `length` tokens of each text, `(rows, longest)`, filled up with padding; white space is folded."""
    return encoder.encode([one_line(text)[: length * MOST_CHARACTERS_A_TOKEN] for text in texts], length)
