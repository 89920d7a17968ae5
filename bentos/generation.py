"""A served language model: a prompt goes in, and a text comes out piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.model import BrokenAnswer, NotServable, ServedModel
from headrace.contract import ContractViolation, Feeds
from headrace.generation import Language, Writing

MOST_TEXTS = 32
"""Prompts in one request."""
MOST_TOKENS_TOGETHER = 32_000
"""Tokens that the prompts of one request may ask for together."""


class GenerationModel(ServedModel):
    """The contract's `prompt` and how to go on from it; answers `text`, `finish_reason` and the number of `tokens`."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._folder = folder
        super().__init__(folder, threads)

    def streams(self, instances: list[Any]) -> list[Iterator[dict[str, Any]]]:
        """Each instance's text as events `{"text": ...}`; the last one has `finish_reason` and `tokens` beside it.

        Advancing an iterator takes one step of the graph. All instances are checked before the first step.

        Raises:
            ContractViolation: also for a prompt of more tokens than the model reads, for more than `MOST_TEXTS` prompts, or for
                more than `MOST_TOKENS_TOGETHER` tokens to write.
        """
        if len(instances) > MOST_TEXTS:
            raise ContractViolation("instances", f"at most {MOST_TEXTS} prompts", f"{len(instances)}")
        feeds = self.to_feeds(instances)
        if (tokens := int(feeds["max_tokens"].sum())) > MOST_TOKENS_TOGETHER:
            raise ContractViolation("instances", f"max_tokens of at most {MOST_TOKENS_TOGETHER:,} together", f"{tokens:,}")
        prompts = [self._prompt(text, row) for row, text in enumerate(feeds["prompt"])]
        return [self._events(prompt, _writing(feeds, row)) for row, prompt in enumerate(prompts)]

    def join(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The events of one text as one answer."""
        return {**events[-1], "text": "".join(event["text"] for event in events)}

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        return [self.join(list(events)) for events in self.streams(instances)]

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """The texts alone, `(rows,)`."""
        prompts = [self._prompt(text, row) for row, text in enumerate(feeds["prompt"])]
        found = [self.join(list(self._events(prompt, _writing(feeds, row)))) for row, prompt in enumerate(prompts)]
        return np.array([answer["text"] for answer in found], dtype=object)

    def _events(self, prompt: list[int], writing: Writing) -> Iterator[dict[str, Any]]:
        try:
            for tokens, piece in enumerate(self._language.write(prompt, writing), 1):
                end = {} if piece.finish is None else {"finish_reason": piece.finish, "tokens": tokens}
                yield {"text": piece.text, **end}
        except ArithmeticError as error:
            raise BrokenAnswer(str(error)) from error

    def _prompt(self, text: str, row: int) -> list[int]:
        try:
            return self._language.prompt(text)
        except ValueError as error:
            raise ContractViolation(
                f"instances.{row}.prompt", f"at most {self._language.layout.length} tokens", str(error)
            ) from None

    def _check_inputs(self) -> None:
        try:
            self._language = Language(self._folder, self._session)
            _ = self._language.encoder.vocabulary  # reads it, so that no request has to
        except (OSError, ValueError) as error:
            raise NotServable(f"the model's parts cannot be read: {error}") from error
        wanted = ["tokens", *(state.name for state in self._language.layout.states)]
        if self._inputs != wanted:
            raise NotServable(f"the graph takes {self._inputs}, and {wanted} are to be fed")


def _writing(feeds: Feeds, row: int) -> Writing:
    seed = int(feeds["seed"][row])
    return Writing(
        max_tokens=int(feeds["max_tokens"][row]),
        temperature=float(feeds["temperature"][row]),
        top_k=int(feeds["top_k"][row]),
        top_p=float(feeds["top_p"][row]),
        seed=None if seed < 0 else seed,
        stop=str(feeds["stop"][row]),
    )
