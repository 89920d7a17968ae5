"""Summarises texts by beam search with the graphs of an encoder-decoder model. Shared by training and serving.

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
ROWS_PER_BATCH = 32
MAX_TOKEN_CHARACTERS = 100
"""A text is truncated to its most tokens times this many characters before it is tokenized."""

StepFunction = Callable[[NDArray[np.int64], NDArray[np.int64] | None], NDArray[np.float32]]
"""Maps the last tokens `(R, K)` and the beams that they continue `(R, K)` (None in the first step) to log-probabilities
`(R, K, V)` of the next tokens."""


class GraphSession(Protocol):
    """The method of onnxruntime's InferenceSession that is used here."""

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> list[Any]: ...


class SearchConfig(BaseModel):
    """Parameters of a model's beam search, stored beside its graphs."""

    model_config = ConfigDict(frozen=True)
    length: int
    """Most tokens of a source text that are read."""
    longest: int
    """Most tokens of a summary."""
    beams: int
    length_penalty: float


@dataclass(frozen=True)
class Hypothesis:
    """A finished text of a search."""

    tokens: list[int]
    """Tokens without start and end."""
    score: float
    """Log-probability divided by the length penalty."""


def beam_search(step: StepFunction, rows: int, beams: int, longest: int, length_penalty: float) -> list[Hypothesis]:
    """Returns the best hypothesis of at most `longest` tokens for each row, found with `beams` beams.

    A text of n tokens, including its end, scores `log p / ((5 + n) / 6) ** length_penalty` (Wu et al. 2016, arXiv:1609.08144,
    eq. 14): a higher penalty favours longer texts, 0 uses the probability alone. A row is finished when `beams` of its
    best texts have ended. One beam is greedy search.
    """
    tokens = np.full((rows, 1), START, dtype=np.int64)
    written = np.zeros((rows, 1, 0), dtype=np.int64)
    total = np.zeros((rows, 1))
    parents: NDArray[np.int64] | None = None
    best = [Hypothesis([], -np.inf)] * rows
    ended = np.zeros(rows, dtype=np.int64)

    for length in range(1, longest + 2):
        scores = total[:, :, None] + _allowed(step(tokens, parents), only_end=length > longest)
        candidates, parents_of, tokens_of = _highest(scores, 2 * beams)  # at most half of them end
        is_end = tokens_of == END
        penalty = ((5 + length) / 6) ** length_penalty
        for row, place in np.argwhere(is_end[:, :beams] & np.isfinite(candidates[:, :beams]) & (ended < beams)[:, None]):
            ended[row] += 1
            if (score := float(candidates[row, place]) / penalty) > best[row].score:
                best[row] = Hypothesis(written[row, parents_of[row, place]].tolist(), score)
        if (ended >= beams).all() or length > longest:
            break
        live = np.argsort(is_end, axis=1, kind="stable")[:, :beams]  # unfinished ones, best first
        parents, tokens = np.take_along_axis(parents_of, live, 1), np.take_along_axis(tokens_of, live, 1)
        total = np.take_along_axis(np.where(is_end, -np.inf, candidates), live, 1)
        written = np.concatenate([np.take_along_axis(written, parents[:, :, None], 1), tokens[:, :, None]], axis=2)
    return best


def _allowed(log_probabilities: NDArray[np.float32], only_end: bool) -> NDArray[np.float64]:
    """Masks special tokens except the end, and all other tokens where the text has to end; `(R, K, V)`."""
    allowed = np.full(log_probabilities.shape, -np.inf)
    first = slice(END, END + 1) if only_end else slice(END, None)
    allowed[:, :, first] = log_probabilities[:, :, first]
    return allowed


def _highest(scores: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the `count` highest of `(R, K, V)`, best first: scores, beams and tokens, each `(R, count)`."""
    rows, _, vocabulary = scores.shape
    flat = scores.reshape(rows, -1)
    count = min(count, flat.shape[1])
    kept = np.argpartition(flat, -count, axis=1)[:, -count:]
    kept.sort(axis=1)  # equal scores are ordered by index, independent of the partition
    kept = np.take_along_axis(kept, np.argsort(-np.take_along_axis(flat, kept, 1), axis=1, kind="stable"), 1)
    return np.take_along_axis(flat, kept, 1), kept // vocabulary, kept % vocabulary


class GraphSteps:
    """Runs the decoder on `source` `(R, S)` step by step, and keeps its states."""

    def __init__(self, encoder: GraphSession, decoder: GraphSession, source: NDArray[np.int64]) -> None:
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
        """Returns the decoder's inputs for the next step."""
        return {"tokens": tokens, **self._read, "past": self._past}


class Summariser:
    """Graphs, tokenizer and search parameters of one model, as both the evaluation and the service use them."""

    def __init__(self, folder: Path, open_graph: Callable[[Path], GraphSession]) -> None:
        """Loads the four files named above from `folder`; `open_graph` opens a graph in ONNX Runtime.

        Raises:
            OSError, ValueError: a file is missing or invalid.
        """
        if missing := [name for name in (ENCODER, DECODER, SEARCH, TOKENIZER) if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{missing[0]} is missing in {folder}")
        self._sessions = (open_graph(folder / ENCODER), open_graph(folder / DECODER))
        self._encoder = Encoder((folder / TOKENIZER).read_text(encoding="utf-8"))
        self._search = SearchConfig.model_validate_json((folder / SEARCH).read_text(encoding="utf-8"))

    def summarise(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Returns a summary of each text with its score from `beam_search`, in the order of `texts`."""
        starts = range(0, len(texts), ROWS_PER_BATCH)
        return [answer for start in starts for answer in self._summarise(texts[start : start + ROWS_PER_BATCH])]

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns token ids `(rows, S)`; a row of padding is a text without tokens."""
        return encode_source(self._encoder, texts, self._search.length)

    def _summarise(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        search = self._search
        step = GraphSteps(*self._sessions, self.encode(texts))
        found = beam_search(step, len(texts), search.beams, search.longest, search.length_penalty)
        return [(self._encoder.decode(one.tokens).strip(), one.score) for one in found]


def one_line(text: str) -> str:
    """Replaces each run of white space by one space."""
    return " ".join(text.split())


def encode_source(encoder: Encoder, texts: Sequence[str], length: int) -> NDArray[np.int64]:
    """Returns ids of the first `length` tokens of each text, `(rows, longest)`, padded; white space is collapsed."""
    return encoder.encode([one_line(text)[: length * MAX_TOKEN_CHARACTERS] for text in texts], length)
