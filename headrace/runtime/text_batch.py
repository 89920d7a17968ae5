"""Texts of different lengths, read together by the step graph of a language model. Shared by training and serving.

R: rows. P: entries of the states that there is room for. V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.generation import READ, REMEMBERED, TOKENS, Session, StepLayout, Steps, states_to_feed

ROOM = 32
"""Entries by which masked states grow, so that they are not copied with every token."""


class Batch:
    """Texts of any lengths that one graph reads together: each step reads one token of every text.

    Of a graph without `masked` whose states grow only rows of one length are read together; in time all are, for they forget
    what is beyond the model's context.
    """

    def __init__(self, session: Session, layout: StepLayout) -> None:
        self._session = session
        self._layout = layout
        self._most = layout.length - 1
        """Entries of a state that grows, beside the token of a step."""
        self._vocabulary = 0
        self._parts: list[_Part] = []
        self._is_one = layout.masked or all(state.grows is None for state in layout.states)
        self._names = 0

    def read(self, prompt: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """A number for the text that begins with `prompt`, and logits `(V,)` of what follows."""
        steps = Steps(self._session, self._layout)
        logits = steps(np.array([prompt], dtype=np.int64))[0, -1]
        self._names += 1
        self._vocabulary = len(logits)
        states = steps.remembered
        if self._layout.masked:
            states = [
                _in_ring(v, s.grows, self._most)
                for v, s in zip(states, self._layout.states, strict=True)
                if s.grows is not None
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
                    by_length.setdefault(min(read, self._most), []).append(text)
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
        assert part.bound is not None
        found = part.bound.run(part.next(tokens), np.minimum(part.read, self._most), part.read)
        part.bound.keep(part.read % self._most)
        part.read = part.read + 1
        return found

    def _gather(self, texts: list[int]) -> _Part:
        """What is remembered of `texts`, in their order; as it lies when nobody came or left and there is room."""
        for part in self._parts:
            if part.texts == texts and (not self._layout.masked or self._has_room(part)):
                return part
        at = {text: (part, row) for part in self._parts for row, text in enumerate(part.texts)}
        rows = [at[text] for text in texts]
        read = np.array([part.read[row] for part, row in rows], dtype=np.int64)
        own = np.minimum(read, self._most).tolist()
        room = min(self._most, max(own) + 1 + ROOM) if self._layout.masked else max(own)
        states = []
        for i, state in enumerate(self._layout.states):
            values = [part.states[i][row] for part, row in rows]
            if state.grows is None:
                states.append(np.stack(values))
                continue
            pick = _first if self._layout.masked else _last
            values = [pick(value, count, state.grows - 1) for value, count in zip(values, own, strict=True)]
            states.append(_stacked(values, state.grows - 1, room))
        bound = _Bound(self._session, self._layout, states, self._vocabulary) if self._layout.masked else None
        return _Part(texts, read, states, bound)

    def _has_room(self, part: _Part) -> bool:
        """Whether it can be stepped where it lies."""
        return part.bound is not None and part.bound.room >= min(self._most, int(part.read.max()) + 1)


@dataclass
class _Part:
    """Texts whose states lie in the same arrays."""

    texts: list[int]
    read: NDArray[np.int64]
    """Tokens that each has read."""
    states: list[NDArray[np.float32]]
    bound: _Bound | None = None
    """Of a masked graph, from the first step on."""

    def next(self, tokens: dict[int, int]) -> NDArray[np.int64]:
        """`(R, 1)`."""
        return np.array([[tokens[text]] for text in self.texts], dtype=np.int64)


class _Bound:
    """A masked graph with its inputs and outputs where they lie: a step neither hands them over nor makes new ones."""

    def __init__(self, session: Session, layout: StepLayout, states: Sequence[NDArray[np.float32]], vocabulary: int) -> None:
        """`states` lie in one piece each; `keep` writes into them."""
        rows, axes = len(states[0]), [state.grows or 0 for state in layout.states]
        self.room = states[0].shape[axes[0]]
        self._session, self._binding = session, session.io_binding()
        self._numbers = [np.zeros(shape, dtype=np.int64) for shape in ((rows, 1), (rows,), (rows,))]
        names = [TOKENS, REMEMBERED, READ, *(state.name for state in layout.states)]
        for name, value in zip(names, [*self._numbers, *states], strict=True):
            self._binding.bind_cpu_input(name, value)
        self._logits = np.zeros((rows, 1, vocabulary), dtype=np.float32)
        new = [np.zeros((*s.shape[:axis], 1, *s.shape[axis + 1 :]), np.float32) for s, axis in zip(states, axes, strict=True)]
        for output, value in zip(session.get_outputs(), [self._logits, *new], strict=True):
            self._binding.bind_output(output.name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
        self._rows = np.arange(rows)
        self._rings = [
            (state.swapaxes(1, axis), added.swapaxes(1, axis)[:, 0])
            for state, added, axis in zip(states, new, axes, strict=True)
        ]
        """Of each state its entries, `(R, P, ...)`, and what is new, `(R, ...)`."""

    def run(self, *numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits `(R, V)` after `TOKENS` `(R, 1)`, with `REMEMBERED` and `READ` `(R,)`."""
        for bound, value in zip(self._numbers, numbers, strict=True):
            bound[:] = value
        self._session.run_with_iobinding(self._binding)
        found: NDArray[np.float32] = self._logits[:, -1].copy()
        return found

    def keep(self, places: NDArray[np.int64]) -> None:
        """Writes what the last run gave of each row at its place."""
        # a plain number for the place of a lone row: numpy then copies, and looks nothing up
        at = (self._rows, places) if len(places) > 1 else (slice(None), int(places[0]))
        for ring, added in self._rings:
            ring[at] = added


def _first(value: NDArray[np.float32], count: int, axis: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = value.swapaxes(axis, 0)[:count].swapaxes(0, axis)
    return found


def _last(value: NDArray[np.float32], count: int, axis: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = value.swapaxes(axis, 0)[value.shape[axis] - count :].swapaxes(0, axis)
    return found


def _stacked(values: list[NDArray[np.float32]], axis: int, size: int) -> NDArray[np.float32]:
    """Rows of different sizes along `axis` as one array, with zeros behind the shorter ones."""
    shape = list(values[0].shape)
    shape[axis] = size
    found = np.zeros((len(values), *shape), dtype=np.float32)
    for row, value in zip(found, values, strict=True):
        row.swapaxes(axis, 0)[: value.shape[axis]] = value.swapaxes(axis, 0)
    return found


def _in_ring(value: NDArray[np.float32], axis: int, most: int) -> NDArray[np.float32]:
    """The last `most` entries, each at its token's place in the text modulo `most`."""
    size = value.shape[axis]
    if size <= most:
        return value
    kept = np.moveaxis(value, axis, 0)[size - most :]
    found: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(np.roll(kept, size - most, axis=0), 0, axis))
    return found
