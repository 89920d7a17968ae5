"""Texts, token by token, over the step graph of a language model. Shared by training and serving.

R: rows. L: tokens of a step. V: vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.runtime.contract import Feeds
from headrace.runtime.tokenizer import END, PAD, START, UNKNOWN, Encoder

STEPS, TOKENIZER = "served_steps.json", "tokenizer.json"
TOKENS = "tokens"
"""The graph's input beside the states; its first output are the logits, the others the states in their order."""
REMEMBERED, READ = "remembered", "read"
"""Further inputs of a graph that reads texts of different lengths together, `(R,)` each: how many entries of the states are the
row's own, and how many tokens it has read in all."""
NEVER_WRITTEN = [PAD, UNKNOWN, START]
Finish = Literal["length", "stop"]


class Session(Protocol):
    """What is needed of onnxruntime's InferenceSession."""

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> list[Any]: ...

    def get_outputs(self) -> Sequence[Any]: ...

    def io_binding(self) -> Any: ...

    def run_with_iobinding(self, binding: Any) -> None: ...


class State(BaseModel):
    """Something that the graph takes from the step before."""

    model_config = ConfigDict(frozen=True)
    name: str
    shape: tuple[int, ...]
    """Of one row, before the first token."""
    grows: int | None = None
    """The axis, counted with the rows as axis 0, that grows by the tokens of each step."""


class StepLayout(BaseModel):
    """How a model's graph is stepped; lies beside it as `served_steps.json`."""

    model_config = ConfigDict(frozen=True)
    length: int
    """Most tokens of a prompt, and of what a state that grows remembers together with the step's own."""
    states: tuple[State, ...]
    masked: bool = False
    """Whether the graph takes `REMEMBERED` and `READ`. Its states all grow then, it gives of each what is new alone, and where
    in a state a token lies makes no difference."""


class Steps:
    """A graph reading texts: keeps what it remembers of the tokens before.

    A state that grows forgets its oldest token when it is full, so that a text may become longer than the model's context.
    """

    def __init__(self, session: Session, layout: StepLayout, rows: int = 1) -> None:
        self._session = session
        self._layout = layout
        self.remembered = [np.zeros((rows, *state.shape), dtype=np.float32) for state in layout.states]
        self.read = 0

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits `(R, L, V)` of what follows each of `tokens` `(R, L)`, of which there are at most `layout.length`."""
        feeds = self.feeds(tokens)
        logits: NDArray[np.float32]
        logits, *after = self._session.run(None, feeds)
        if self._layout.masked:
            kept = [feeds[state.name] for state in self._layout.states]
            after = [np.concatenate([a, b], axis=s.grows) for a, b, s in zip(kept, after, self._layout.states, strict=True)]
        self.remembered = after
        self.read += tokens.shape[1]
        return logits

    def feeds(self, tokens: NDArray[np.int64]) -> Feeds:
        """What the graph takes next."""
        states = states_to_feed(self._layout, self.remembered, tokens.shape[1])
        if not self._layout.masked:
            return {TOKENS: tokens, **states}
        first = self._layout.states[0]
        own = states[first.name].shape[first.grows or 0]
        counts = {name: np.full(len(tokens), count, dtype=np.int64) for name, count in ((REMEMBERED, own), (READ, self.read))}
        return {TOKENS: tokens, **counts, **states}


def states_to_feed(layout: StepLayout, remembered: Sequence[NDArray[np.float32]], length: int) -> Feeds:
    """What is remembered, by name, with the oldest tokens forgotten where `length` new ones need the room."""
    room = layout.length - length
    return {state.name: _newest(value, state.grows, room) for state, value in zip(layout.states, remembered, strict=True)}


def _newest(value: NDArray[Any], axis: int | None, room: int) -> NDArray[Any]:
    if axis is None or value.shape[axis] <= room:
        return value
    kept: NDArray[Any] = value[(slice(None),) * axis + (slice(value.shape[axis] - room, None),)]
    return kept


@dataclass(frozen=True)
class Writing:
    """How a text is written."""

    max_tokens: int = 200
    temperature: float = 0.8
    """0 always takes the likeliest token; above 1 the unlikely become likelier."""
    top_k: int = 0
    """Draws among so many of the likeliest tokens; 0 draws among all."""
    top_p: float = 1.0
    """Draws among the likeliest tokens that together have this probability (Holtzman et al. 2020, arXiv:1904.09751)."""
    seed: int | None = None
    """The same seed writes the same text; None draws afresh."""
    stop: str | tuple[str, ...] = ""
    """The text ends before these characters, or the first of several."""

    @property
    def stops(self) -> tuple[str, ...]:
        found = (self.stop,) if isinstance(self.stop, str) else self.stop
        return tuple(stop for stop in found if stop)


@dataclass(frozen=True)
class Piece:
    """What one step adds to a text."""

    text: str
    """May be empty: a token may be part of a character, or of what could become `stop`."""
    finish: Finish | None = None
    """Why the text ends here: at its most tokens, or where the model or `stop` ends it."""


class Writer:
    """One text being written: from the logits of each step to the next token and its characters.

    Which graph runs, and with how many rows, is the caller's business.
    """

    def __init__(self, encoder: Encoder, writing: Writing) -> None:
        self._decode = encoder.decoding()
        self._writing = writing
        self._rng = np.random.default_rng(writing.seed)
        self._held = ""
        self.tokens: list[int] = []

    def take(self, logits: NDArray[np.float32]) -> Piece:
        """The piece that follows from `logits` `(V,)`; its token is the last of `tokens` then, unless it is the end.

        Raises:
            ArithmeticError: they hold NaN or infinity.
        """
        token = choose(logits, self._writing, self._rng)
        if token == END:
            return Piece(self._held, "stop")
        self.tokens.append(token)
        text = self._held + self._decode(token)
        stops = self._writing.stops
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        if ends:
            return Piece(text[: min(ends)], "stop")
        if len(self.tokens) >= self._writing.max_tokens:
            return Piece(text, "length")
        kept = max((_overlap(text, stop) for stop in stops), default=0)
        self._held = text[len(text) - kept :]
        return Piece(text[: len(text) - kept])


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)


def choose(logits: NDArray[np.float32], writing: Writing, rng: np.random.Generator) -> int:
    """A token drawn from `logits` `(V,)`: the end, or one that stands for text.

    Raises:
        ArithmeticError: they hold NaN or infinity.
    """
    if not np.isfinite(logits).all():
        raise ArithmeticError("the graph gave NaN or infinity")
    logits = logits.copy()
    logits[NEVER_WRITTEN] = -np.inf
    if writing.temperature == 0:
        return int(logits.argmax())
    order = likeliest_first(logits)[: writing.top_k or None]
    scores = logits[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature makes all but the likeliest impossible
        weights = np.exp((scores - scores[0]) / writing.temperature)
    total = weights.cumsum()
    kept = int(total.searchsorted(writing.top_p * total[-1])) + 1
    drawn = int(total.searchsorted(rng.random() * total[kept - 1], side="right"))
    return int(order[min(drawn, kept - 1)])


def likeliest_first(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Tokens `(V,)` by falling logit, equals by number.

    What `np.argsort(-logits, kind="stable")` gives, in a quarter of its time: logit and token are sorted as one integer, for
    which numpy has vector code.
    """
    bits = (np.float32(0) - logits).view(np.int32)  # a sign alone would make -0 of 0, which come as equals
    bits ^= (bits >> 31) & 0x7FFF_FFFF  # those of negative numbers count downwards
    keys = (bits.astype(np.int64) << 32) | np.arange(len(logits))
    keys.sort()
    return keys & 0xFFFF_FFFF


class Language:
    """Graph, tokenizer and layout of one model: what both the evaluation and the service write with."""

    def __init__(self, folder: Path, session: Session) -> None:
        """`folder` holds the files named above; `session` runs the graph that lies beside them."""
        self.encoder = Encoder((folder / TOKENIZER).read_text(encoding="utf-8"))
        self.layout = StepLayout.model_validate_json((folder / STEPS).read_text(encoding="utf-8"))
        self.session = session

    def steps(self, rows: int = 1) -> Steps:
        return Steps(self.session, self.layout, rows)

    def prompt(self, text: str) -> list[int]:
        """Tokens of a prompt; an empty one stands for the beginning of a text.

        Raises:
            ValueError: it has more tokens than the model reads at once.
        """
        tokens = self.encoder.tokens(text) or [START]
        if len(tokens) > self.layout.length:
            raise ValueError(f"{len(tokens)} tokens")
        return tokens

    def write(self, prompt: Sequence[int], writing: Writing) -> Iterator[Piece]:
        """Piece by piece, each a step of the graph, until one says why it is the last.

        The first step reads the prompt, and already gives the first piece.
        """
        steps, writer = self.steps(), Writer(self.encoder, writing)
        read = list(prompt)
        while True:
            piece = writer.take(steps(np.array([read], dtype=np.int64))[0, -1])
            yield piece
            if piece.finish is not None:
                return
            read = writer.tokens[-1:]

    def bits(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Bits of each of `tokens` `(n,)` given a text's start and those before it, as far back as the model remembers.

        Read in strides of half the context, so that each token sees at least that much of what stands before it.
        """
        steps = self.steps()
        read, wanted = np.array([START, *tokens[:-1]], dtype=np.int64), np.array(tokens, dtype=np.int64)
        stride = max(1, self.layout.length // 2)
        found = [np.zeros(0)]
        for start in range(0, len(wanted), stride):
            part = slice(start, start + stride)
            found.append(_bits_of(steps(read[None, part])[0], wanted[part]))
        return np.concatenate(found)


def _bits_of(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits `(L,)` of `tokens` `(L,)` under `logits` `(L, V)`."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    surprise: NDArray[np.float64] = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(tokens)), tokens]
    return surprise / math.log(2)
