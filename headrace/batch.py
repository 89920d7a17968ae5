"""Texts of different lengths, read together by the step graph of a language model. Shared by training and serving.

V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.generation import REMEMBERED, TOKENS, Session, StepLayout, Steps, states_to_feed


class Batch:
    """Texts of any lengths that one graph reads together: each step reads one token of every text.

    What a graph with `masked` remembers is filled up at the front, to the longest of its rows. Of another graph whose states
    grow only rows of one length are read together; in time all are, for they forget what is beyond the model's context.
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
        self._parts.append(_Part([self._names], np.array([len(prompt)], dtype=np.int64), steps.remembered))
        return self._names, logits

    def step(self, tokens: dict[int, int]) -> dict[int, NDArray[np.float32]]:
        """Logits `(V,)` of what follows the next token of each text; texts that are not named are forgotten."""
        self._parts = [self._gather(texts) for texts in self._together(tokens)]
        return {text: logits for part in self._parts for text, logits in zip(part.texts, self._run(part, tokens), strict=True)}

    def _together(self, tokens: dict[int, int]) -> list[list[int]]:
        """The texts that are read at once."""
        if self._is_one:
            return [list(tokens)] if tokens else []
        by_length: dict[int, list[int]] = {}
        for part in self._parts:
            for text, length in zip(part.texts, part.lengths.tolist(), strict=True):
                if text in tokens:
                    by_length.setdefault(min(length, self._layout.length - 1), []).append(text)
        return list(by_length.values())

    def _run(self, part: _Part, tokens: dict[int, int]) -> NDArray[np.float32]:
        """`(texts, V)`."""
        read = np.array([[tokens[text]] for text in part.texts], dtype=np.int64)
        part.lengths = np.minimum(part.lengths, self._layout.length - 1)
        feeds = {TOKENS: read} | ({REMEMBERED: part.lengths} if self._layout.masked else {})
        logits, *part.states = self._session.run(None, feeds | states_to_feed(self._layout, part.states, 1))
        part.lengths = part.lengths + 1
        found: NDArray[np.float32] = logits[:, -1]
        return found

    def _gather(self, texts: list[int]) -> _Part:
        """What is remembered of `texts`, in their order; as it lies when nobody came or left."""
        at = {text: (part, row) for part in self._parts for row, text in enumerate(part.texts)}
        first = at[texts[0]][0]
        if first.texts == texts:
            return first
        rows = [at[text] for text in texts]
        lengths = np.array([part.lengths[row] for part, row in rows], dtype=np.int64)
        states = []
        for i, state in enumerate(self._layout.states):
            values = [part.states[i][row] for part, row in rows]
            states.append(np.stack(values) if state.grows is None else _aligned(values, lengths, state.grows - 1))
        return _Part(texts, lengths, states)


@dataclass
class _Part:
    """Texts whose states lie in the same arrays."""

    texts: list[int]
    lengths: NDArray[np.int64]
    """Tokens that each remembers: its last entries along the axis that grows."""
    states: list[NDArray[np.float32]]


def _aligned(values: list[NDArray[np.float32]], lengths: NDArray[np.int64], axis: int) -> NDArray[np.float32]:
    """Rows of different lengths as one array: the last `lengths` entries of each along `axis`, zeros before them."""
    lengths = np.minimum(lengths, [value.shape[axis] for value in values])
    shape = list(values[0].shape)
    shape[axis] = int(lengths.max())
    found = np.zeros((len(values), *shape), dtype=np.float32)
    for row, value, length in zip(found, values, lengths.tolist(), strict=True):
        np.moveaxis(row, axis, 0)[shape[axis] - length :] = np.moveaxis(value, axis, 0)[value.shape[axis] - length :]
    return found
