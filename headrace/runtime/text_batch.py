"""Runs texts of different lengths through one step graph together. Shared by training and serving.

R: rows. P: capacity of the states, in entries. V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.generation import READ, REMEMBERED, TOKENS, Session, StepLayout, StepRunner, states_to_feed

GROWTH = 32
"""Spare entries of masked states, so that they are not copied with every token."""


class TextBatch:
    """Texts of any lengths in one batch: each step reads one token of every text.

    A graph without `masked` whose states grow can only batch rows of equal length. Once their context is full, all rows have
    the same length.
    """

    def __init__(self, session: Session, layout: StepLayout) -> None:
        self._session = session
        self._layout = layout
        self._capacity = layout.length - 1
        """Most entries of a growing state, beside the token of a step."""
        self._vocabulary = 0
        self._groups: list[_Group] = []
        self._is_one_group = layout.masked or all(state.grows is None for state in layout.states)
        self._texts = 0

    def read(self, prompt: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """Adds a text that begins with `prompt`; returns its number, and logits `(V,)` of the next token."""
        steps = StepRunner(self._session, self._layout)
        logits = steps(np.array([prompt], dtype=np.int64))[0, -1]
        self._texts += 1
        self._vocabulary = len(logits)
        states = steps.states
        if self._layout.masked:
            states = [
                _in_ring(v, s.grows, self._capacity)
                for v, s in zip(states, self._layout.states, strict=True)
                if s.grows is not None
            ]
        self._groups.append(_Group([self._texts], np.array([len(prompt)], dtype=np.int64), states))
        return self._texts, logits

    def step(self, tokens: dict[int, int]) -> dict[int, NDArray[np.float32]]:
        """Reads the next token of each text and returns logits `(V,)` of the token after it; other texts leave the batch."""
        self._groups = [self._gather(texts) for texts in self._group(tokens)]
        run = self._run_masked if self._layout.masked else self._run
        return {text: logits for group in self._groups for text, logits in zip(group.texts, run(group, tokens), strict=True)}

    def _group(self, tokens: dict[int, int]) -> list[list[int]]:
        """Returns the texts of each run of the graph."""
        if self._is_one_group:
            return [list(tokens)] if tokens else []
        by_length: dict[int, list[int]] = {}
        for group in self._groups:
            for text, read in zip(group.texts, group.read.tolist(), strict=True):
                if text in tokens:
                    by_length.setdefault(min(read, self._capacity), []).append(text)
        return list(by_length.values())

    def _run(self, group: _Group, tokens: dict[int, int]) -> NDArray[np.float32]:
        """Returns logits `(R, V)` of a graph that returns whole states."""
        feeds = {TOKENS: group.next(tokens), **states_to_feed(self._layout, group.states, 1)}
        logits, *group.states = self._session.run(None, feeds)
        group.read = group.read + 1
        found: NDArray[np.float32] = logits[:, -1]
        return found

    def _run_masked(self, group: _Group, tokens: dict[int, int]) -> NDArray[np.float32]:
        """Returns logits `(R, V)` of a graph that returns new entries, which replace the oldest in a full context."""
        assert group.bound is not None
        found = group.bound.run(group.next(tokens), np.minimum(group.read, self._capacity), group.read)
        group.bound.keep(group.read % self._capacity)
        group.read = group.read + 1
        return found

    def _gather(self, texts: list[int]) -> _Group:
        """Returns the states of `texts` in their order, without copying when the texts are the same and there is space."""
        for group in self._groups:
            if group.texts == texts and (not self._layout.masked or self._has_space(group)):
                return group
        at = {text: (group, row) for group in self._groups for row, text in enumerate(group.texts)}
        rows = [at[text] for text in texts]
        read = np.array([group.read[row] for group, row in rows], dtype=np.int64)
        own = np.minimum(read, self._capacity).tolist()
        size = min(self._capacity, max(own) + 1 + GROWTH) if self._layout.masked else max(own)
        states = []
        for i, state in enumerate(self._layout.states):
            values = [group.states[i][row] for group, row in rows]
            if state.grows is None:
                states.append(np.stack(values))
                continue
            pick = _first if self._layout.masked else _last
            values = [pick(value, count, state.grows - 1) for value, count in zip(values, own, strict=True)]
            states.append(_stacked(values, state.grows - 1, size))
        bound = _Bound(self._session, self._layout, states, self._vocabulary) if self._layout.masked else None
        return _Group(texts, read, states, bound)

    def _has_space(self, group: _Group) -> bool:
        """Whether the group can take a step without copying its states."""
        return group.bound is not None and group.bound.capacity >= min(self._capacity, int(group.read.max()) + 1)


@dataclass
class _Group:
    """Texts whose states share arrays."""

    texts: list[int]
    read: NDArray[np.int64]
    """Tokens read so far, `(R,)`."""
    states: list[NDArray[np.float32]]
    bound: _Bound | None = None
    """Bound buffers of a masked graph, from the first step on."""

    def next(self, tokens: dict[int, int]) -> NDArray[np.int64]:
        """Returns the texts' next tokens `(R, 1)`."""
        return np.array([[tokens[text]] for text in self.texts], dtype=np.int64)


class _Bound:
    """A masked graph whose inputs and outputs are bound once, so that a step neither copies nor allocates them."""

    def __init__(self, session: Session, layout: StepLayout, states: Sequence[NDArray[np.float32]], vocabulary: int) -> None:
        """Binds `states`, contiguous arrays into which `keep` writes."""
        rows, axes = len(states[0]), [state.grows or 0 for state in layout.states]
        self.capacity = states[0].shape[axes[0]]
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
        """For each state, its entries `(R, P, ...)` and the new entry `(R, ...)`."""

    def run(self, *numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns logits `(R, V)` for `TOKENS` `(R, 1)`, `REMEMBERED` `(R,)` and `READ` `(R,)`."""
        for bound, value in zip(self._numbers, numbers, strict=True):
            bound[:] = value
        self._session.run_with_iobinding(self._binding)
        found: NDArray[np.float32] = self._logits[:, -1].copy()
        return found

    def keep(self, places: NDArray[np.int64]) -> None:
        """Writes the new entry of each row at its place `(R,)`."""
        # a plain number as the index of a single row: numpy then copies a slice instead of gathering
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
    """Stacks rows of different sizes along `axis`, with zeros behind the shorter ones."""
    shape = list(values[0].shape)
    shape[axis] = size
    found = np.zeros((len(values), *shape), dtype=np.float32)
    for row, value in zip(found, values, strict=True):
        row.swapaxes(axis, 0)[: value.shape[axis]] = value.swapaxes(axis, 0)
    return found


def _in_ring(value: NDArray[np.float32], axis: int, capacity: int) -> NDArray[np.float32]:
    """Returns the last `capacity` entries, each at its token's position in the text modulo `capacity`."""
    size = value.shape[axis]
    if size <= capacity:
        return value
    kept = np.moveaxis(value, axis, 0)[size - capacity :]
    found: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(np.roll(kept, size - capacity, axis=0), 0, axis))
    return found
