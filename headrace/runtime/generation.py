"""Generates text token by token with the step graph of a language model. Shared by training and serving.

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
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import END, PAD, START, UNKNOWN, Encoder

STEPS, TOKENIZER = "served_steps.json", "tokenizer.json"
TOKENS = "tokens"
"""The graph's input beside the states. Its first output is the logits; the others are the states, in their order."""
REMEMBERED, READ = "remembered", "read"
"""Further inputs, `(R,)` each, of a graph that reads texts of different lengths together: how many entries of the states
belong to the row, and how many tokens it has read in total."""
NEVER_SAMPLED = [PAD, UNKNOWN, START]
Finish = Literal["length", "stop"]
MAX_TOKENS = 10_000
"""Limit on `max_tokens` in a request; generating this many takes minutes, for which a client has to stream."""
CHARACTERS_PER_TOKEN = 20
"""Upper limit that bounds the length of a prompt: longer ones are refused before they are tokenized."""
LONGEST_STOP = 100
"""Maximum length of a stop sequence, in characters."""


class Session(Protocol):
    """The methods of onnxruntime's InferenceSession that are used here."""

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> list[Any]: ...

    def get_outputs(self) -> Sequence[Any]: ...

    def io_binding(self) -> Any: ...

    def run_with_iobinding(self, binding: Any) -> None: ...


class StateSpec(BaseModel):
    """One state that the graph passes from step to step, such as a key-value cache."""

    model_config = ConfigDict(frozen=True)
    name: str
    shape: tuple[int, ...]
    """Shape for one row, before the first token."""
    grows: int | None = None
    """The axis that grows by the tokens of each step, where axis 0 is the rows; None for a state of constant size."""


class StepLayout(BaseModel):
    """Inputs and outputs of a step graph, stored beside it as `served_steps.json`."""

    model_config = ConfigDict(frozen=True)
    length: int
    """Context length: most tokens of a prompt, and of a growing state together with those of the step."""
    states: tuple[StateSpec, ...]
    masked: bool = False
    """Whether the graph takes `REMEMBERED` and `READ`. Then all its states grow, it returns only the new entries of each, and
    the order of entries within a state makes no difference."""


class StepRunner:
    """Runs a step graph and keeps its states between steps.

    A growing state drops its oldest token when it is full, so that a text may become longer than the model's context.
    """

    def __init__(self, session: Session, layout: StepLayout, rows: int = 1) -> None:
        self._session = session
        self._layout = layout
        self.states = [np.zeros((rows, *state.shape), dtype=np.float32) for state in layout.states]
        self.read = 0

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns logits `(R, L, V)` of the token after each of `tokens` `(R, L)`; L is at most `layout.length`."""
        feeds = self.feeds(tokens)
        logits: NDArray[np.float32]
        logits, *after = self._session.run(None, feeds)
        if self._layout.masked:
            kept = [feeds[state.name] for state in self._layout.states]
            after = [np.concatenate([a, b], axis=s.grows) for a, b, s in zip(kept, after, self._layout.states, strict=True)]
        self.states = after
        self.read += tokens.shape[1]
        return logits

    def feeds(self, tokens: NDArray[np.int64]) -> Feeds:
        """Returns the inputs of the next step."""
        states = states_to_feed(self._layout, self.states, tokens.shape[1])
        if not self._layout.masked:
            return {TOKENS: tokens, **states}
        first = self._layout.states[0]
        own = states[first.name].shape[first.grows or 0]
        counts = {name: np.full(len(tokens), count, dtype=np.int64) for name, count in ((REMEMBERED, own), (READ, self.read))}
        return {TOKENS: tokens, **counts, **states}


def states_to_feed(layout: StepLayout, values: Sequence[NDArray[np.float32]], length: int) -> Feeds:
    """Returns the states by name, without their oldest tokens where `length` new ones need the space."""
    size = layout.length - length
    return {state.name: _newest(value, state.grows, size) for state, value in zip(layout.states, values, strict=True)}


def _newest(value: NDArray[Any], axis: int | None, size: int) -> NDArray[Any]:
    if axis is None or value.shape[axis] <= size:
        return value
    kept: NDArray[Any] = value[(slice(None),) * axis + (slice(value.shape[axis] - size, None),)]
    return kept


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled, and when a text ends."""

    max_tokens: int = 200
    temperature: float = 0.8
    """0 always takes the likeliest token; above 1, unlikely tokens become likelier."""
    top_k: int = 0
    """Samples from this many of the likeliest tokens; 0 samples from all."""
    top_p: float = 1.0
    """Samples from the likeliest tokens that together have this probability (Holtzman et al. 2020, arXiv:1904.09751)."""
    seed: int | None = None
    """Makes the text reproducible; None samples differently each time."""
    stop: str | tuple[str, ...] = ""
    """The text ends before these characters, or before the first of several that occurs."""

    @property
    def stops(self) -> tuple[str, ...]:
        found = (self.stop,) if isinstance(self.stop, str) else self.stop
        return tuple(stop for stop in found if stop)


@dataclass(frozen=True)
class TextChunk:
    """Characters that one step adds to a text."""

    text: str
    """May be empty: a token may be part of a character, or the beginning of `stop`."""
    finish: Finish | None = None
    """Why the text ends here: `length` at `max_tokens`, `stop` where the model or the parameter `stop` ends it."""


class TextWriter:
    """Samples the tokens of one text from the logits of each step, and decodes them; the caller runs the graph."""

    def __init__(self, encoder: Encoder, sampling: SamplingParams) -> None:
        self._decode = encoder.stream_decoder()
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)
        self._held = ""
        self.tokens: list[int] = []

    def take(self, logits: NDArray[np.float32]) -> TextChunk:
        """Samples from `logits` `(V,)` and returns the new characters; the token is appended to `tokens` unless it is the end.

        Raises:
            ArithmeticError: the logits contain NaN or infinity.
        """
        token = sample_token(logits, self._sampling, self._rng)
        if token == END:
            return TextChunk(self._held, "stop")
        self.tokens.append(token)
        text = self._held + self._decode(token)
        stops = self._sampling.stops
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        if ends:
            return TextChunk(text[: min(ends)], "stop")
        if len(self.tokens) >= self._sampling.max_tokens:
            return TextChunk(text, "length")
        kept = max((_overlap(text, stop) for stop in stops), default=0)
        self._held = text[len(text) - kept :]
        return TextChunk(text[: len(text) - kept])


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)


def sample_token(logits: NDArray[np.float32], sampling: SamplingParams, rng: np.random.Generator) -> int:
    """Samples a token from `logits` `(V,)`: the end token or one of text.

    Raises:
        ArithmeticError: the logits contain NaN or infinity.
    """
    if not np.isfinite(logits).all():
        raise ArithmeticError("the graph gave NaN or infinity")
    logits = logits.copy()
    logits[NEVER_SAMPLED] = -np.inf
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = likeliest_first(logits)[: sampling.top_k or None]
    scores = logits[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature makes all but the likeliest impossible
        weights = np.exp((scores - scores[0]) / sampling.temperature)
    total = weights.cumsum()
    kept = int(total.searchsorted(sampling.top_p * total[-1])) + 1
    drawn = int(total.searchsorted(rng.random() * total[kept - 1], side="right"))
    return int(order[min(drawn, kept - 1)])


def likeliest_first(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns tokens `(V,)` by falling logit, equal ones by number.

    Same as `np.argsort(-logits, kind="stable")` in a quarter of the time: logit and token are sorted as one integer, for which
    numpy has vector code.
    """
    bits = (np.float32(0) - logits).view(np.int32)  # a plain sign change would turn 0 into -0, which are equal here
    bits ^= (bits >> 31) & 0x7FFF_FFFF  # bit patterns of negative numbers are in falling order
    keys = (bits.astype(np.int64) << 32) | np.arange(len(logits))
    keys.sort()
    return keys & 0xFFFF_FFFF


class TextGenerator:
    """Graph, tokenizer and layout of one language model, as both the evaluation and the service use them."""

    def __init__(self, folder: Path, session: Session) -> None:
        """Reads `STEPS` and `TOKENIZER` from `folder`; `session` runs the graph stored beside them."""
        self.encoder = Encoder((folder / TOKENIZER).read_text(encoding="utf-8"))
        self.layout = StepLayout.model_validate_json((folder / STEPS).read_text(encoding="utf-8"))
        self.session = session

    def steps(self, rows: int = 1) -> StepRunner:
        return StepRunner(self.session, self.layout, rows)

    def prompt(self, text: str) -> list[int]:
        """Returns the tokens of a prompt; an empty prompt becomes the start token.

        Raises:
            ValueError: it has more tokens than the model's context.
        """
        tokens = self.encoder.tokens(text) or [START]
        if len(tokens) > self.layout.length:
            raise ValueError(f"{len(tokens)} tokens")
        return tokens

    def generate(self, prompt: Sequence[int], sampling: SamplingParams) -> Iterator[TextChunk]:
        """Yields the text in chunks, one for each step of the graph; the last one has `finish`.

        The first step reads the prompt and yields the first chunk.
        """
        steps, writer = self.steps(), TextWriter(self.encoder, sampling)
        read = list(prompt)
        while True:
            chunk = writer.take(steps(np.array([read], dtype=np.int64))[0, -1])
            yield chunk
            if chunk.finish is not None:
                return
            read = writer.tokens[-1:]

    def bits(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Returns the bits `(n,)` of `tokens` `(n,)`, each given the start of a text and the tokens before it in the context.

        Tokens are read in strides of half the context, so that each one sees at least that many tokens before it.
        """
        steps = self.steps()
        read, wanted = np.array([START, *tokens[:-1]], dtype=np.int64), np.array(tokens, dtype=np.int64)
        stride = max(1, self.layout.length // 2)
        found = [np.zeros(0)]
        for start in range(0, len(wanted), stride):
            part = slice(start, start + stride)
            found.append(_bits_of(steps(read[None, part])[0], wanted[part]))
        return np.concatenate(found)


@dataclass(frozen=True)
class GenerationRequest:
    """A text to generate, whose prompt and parameters are checked."""

    generator: TextGenerator
    prompt: list[int]
    sampling: SamplingParams


def _bits_of(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns bits `(L,)` of `tokens` `(L,)` under `logits` `(L, V)`."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    surprise: NDArray[np.float64] = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(tokens)), tokens]
    return surprise / math.log(2)


def generation_inputs(length: int) -> list[InputField]:
    """Returns the fields of a request: a prompt of at most `length` tokens, and the settings of `SamplingParams`."""
    usual = SamplingParams()
    return [
        InputField(name="prompt", dtype="string", longest=length * CHARACTERS_PER_TOKEN),
        InputField(name="max_tokens", dtype="int64", minimum=1, maximum=MAX_TOKENS, default=usual.max_tokens),
        InputField(name="temperature", dtype="float32", minimum=0, maximum=10, default=usual.temperature),
        InputField(name="top_k", dtype="int64", minimum=0, default=usual.top_k),
        InputField(name="top_p", dtype="float32", minimum=0, maximum=1, default=usual.top_p),
        InputField(name="seed", dtype="int64", minimum=-1, default=-1),
        InputField(name="stop", dtype="string", nullable=True, longest=LONGEST_STOP),
    ]
