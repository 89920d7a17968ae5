"""Texts of different lengths, read together by the step graph of a language model. Shared by training and serving.

R: rows. P: entries of the states that there is room for. V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.generation import READ, REMEMBERED, TOKENS, Session, StepLayout, Steps, states_to_feed

ROOM = 32
"""Entries by which states grow, so that they are not copied with every token."""


class Batch:
    """Texts of any lengths that one graph reads together: each step reads one token of every text.

    Of a graph without `masked` whose states grow only rows of one length are read together; in time all are, for they forget
    what is beyond the model's context.
    """

    def __init__(self, session: Session, layout: StepLayout) -> None:
        self._session = session
        self._layout = layout
        self._parts: list[_Part] = []
        self._is_one = layout.masked or all(state.grows is None for state in layout.states)
        self._names = 0

    def read(self, prompt: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """A number for the text that begins with `prompt`, and logits `(V,)` of what follows."""
        steps = Steps(self._session, self._layout)
        logits = steps(np.array([prompt], dtype=np.int64))[0, -1]
        self._names += 1
        states = steps.remembered
        if self._layout.masked:
            most = self._layout.length - 1
            states = [
                _in_ring(v, s.grows, most) for v, s in zip(states, self._layout.states, strict=True) if s.grows is not None
            ]
        self._parts.append(_Part([self._names], np.array([len(prompt)], dtype=np.int64), states))
        return self._names, logits

    def step(self, tokens: dict[int, int]) -> dict[int, NDArray[np.float32]]:
        """Logits `(V,)` of what follows the next token of each text; texts that are not named are forgotten."""
        self._parts = [self._gather(texts) for texts in self._together(tokens)]
        run = self._run_masked if self._layout.masked else self._run
        return {text: logits for part in self._parts for text, logits in zip(part.texts, run(part, tokens), strict=True)}

    def _together(self, tokens: dict[int, int]) -> list[list[int]]:
        """The texts that are read at once."""
        if self._is_one:
            return [list(tokens)] if tokens else []
        by_length: dict[int, list[int]] = {}
        for part in self._parts:
            for text, read in zip(part.texts, part.read.tolist(), strict=True):
                if text in tokens:
                    by_length.setdefault(min(read, self._layout.length - 1), []).append(text)
        return list(by_length.values())

    def _run(self, part: _Part, tokens: dict[int, int]) -> NDArray[np.float32]:
        """`(R, V)`; the graph gives whole states."""
        feeds = {TOKENS: part.next(tokens), **states_to_feed(self._layout, part.states, 1)}
        logits, *part.states = self._session.run(None, feeds)
        part.read = part.read + 1
        found: NDArray[np.float32] = logits[:, -1]
        return found

    def _run_masked(self, part: _Part, tokens: dict[int, int]) -> NDArray[np.float32]:
        """`(R, V)`; the graph gives what is new, which takes the place of the oldest where a row remembers all it can."""
        most = self._layout.length - 1
        states = {state.name: value for state, value in zip(self._layout.states, part.states, strict=True)}
        counts = {REMEMBERED: np.minimum(part.read, most), READ: part.read}
        logits, *new = self._session.run(None, {TOKENS: part.next(tokens), **counts, **states})
        self._make_room(part)
        rows, places = np.arange(len(part.texts)), part.read % most
        for state, value, added in zip(self._layout.states, part.states, new, strict=True):
            assert state.grows is not None
            np.moveaxis(value, state.grows, 1)[rows, places] = np.moveaxis(added, state.grows, 1)[:, 0]
        part.read = part.read + 1
        found: NDArray[np.float32] = logits[:, -1]
        return found

    def _make_room(self, part: _Part) -> None:
        """Room for one token more of each row."""
        most = self._layout.length - 1
        needed = min(most, int(part.read.max()) + 1)
        for i, state in enumerate(self._layout.states):
            assert state.grows is not None
            value = part.states[i]
            if value.shape[state.grows] < needed:
                part.states[i] = _stacked(list(value), state.grows - 1, min(most, needed + ROOM))

    def _gather(self, texts: list[int]) -> _Part:
        """What is remembered of `texts`, in their order; as it lies when nobody came or left."""
        at = {text: (part, row) for part in self._parts for row, text in enumerate(part.texts)}
        first = at[texts[0]][0]
        if first.texts == texts:
            return first
        rows = [at[text] for text in texts]
        read = np.array([part.read[row] for part, row in rows], dtype=np.int64)
        own = np.minimum(read, self._layout.length - 1).tolist()
        states = []
        for i, state in enumerate(self._layout.states):
            values = [part.states[i][row] for part, row in rows]
            if state.grows is None:
                states.append(np.stack(values))
                continue
            pick = _first if self._layout.masked else _last
            values = [pick(value, count, state.grows - 1) for value, count in zip(values, own, strict=True)]
            states.append(_stacked(values, state.grows - 1, max(own)))
        return _Part(texts, read, states)


@dataclass
class _Part:
    """Texts whose states lie in the same arrays."""

    texts: list[int]
    read: NDArray[np.int64]
    """Tokens that each has read."""
    states: list[NDArray[np.float32]]

    def next(self, tokens: dict[int, int]) -> NDArray[np.int64]:
        """`(R, 1)`."""
        return np.array([[tokens[text]] for text in self.texts], dtype=np.int64)


def _first(value: NDArray[np.float32], count: int, axis: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.moveaxis(np.moveaxis(value, axis, 0)[:count], 0, axis)
    return found


def _last(value: NDArray[np.float32], count: int, axis: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.moveaxis(np.moveaxis(value, axis, 0)[value.shape[axis] - count :], 0, axis)
    return found


def _stacked(values: list[NDArray[np.float32]], axis: int, size: int) -> NDArray[np.float32]:
    """Rows of different sizes along `axis` as one array, with zeros behind the shorter ones."""
    shape = list(values[0].shape)
    shape[axis] = size
    found = np.zeros((len(values), *shape), dtype=np.float32)
    for row, value in zip(found, values, strict=True):
        np.moveaxis(row, axis, 0)[: value.shape[axis]] = np.moveaxis(value, axis, 0)
    return found


def _in_ring(value: NDArray[np.float32], axis: int, most: int) -> NDArray[np.float32]:
    """The last `most` entries, each at its token's place in the text modulo `most`."""
    size = value.shape[axis]
    if size <= most:
        return value
    kept = np.moveaxis(value, axis, 0)[size - most :]
    found: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(np.roll(kept, size - most, axis=0), 0, axis))
    return found
