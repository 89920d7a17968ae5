"""A served language model: a prompt goes in, and a text comes out piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.served_model import BrokenAnswer, NotServable, ServedModel
from bentos.scheduling.continuous import Text
from headrace.runtime.contract import ContractViolation, Feeds
from headrace.runtime.generation import READ, REMEMBERED, TOKENS, Language, Writing

MOST_TEXTS = 32
"""Prompts in one request."""
MOST_TOKENS_TOGETHER = 32_000
"""Tokens that the prompts of one request may ask for together."""


class GenerationModel(ServedModel):
    """The contract's `prompt` and how to go on from it; answers `text`, `finish_reason` and the number of `tokens`."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._folder = folder
        super().__init__(folder, threads)

    def streams(self, instances: list[Any]) -> list[Text]:
        """Each instance's text, to be written; all are checked before any begins.

        Written, each is events `{"text": ...}`, one a step of the graph; the last has `finish_reason` and `tokens` beside it.

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
        return [Text(self.language, prompt, _writing(feeds, row)) for row, prompt in enumerate(prompts)]

    def join(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The events of one text as one answer."""
        return {**events[-1], "text": "".join(event["text"] for event in events)}

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        """The texts one after another."""
        return [self._write(text) for text in self.streams(instances)]

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """The texts alone, `(rows,)`."""
        prompts = [self._prompt(text, row) for row, text in enumerate(feeds["prompt"])]
        found = [self._write(Text(self.language, prompt, _writing(feeds, row))) for row, prompt in enumerate(prompts)]
        return np.array([answer["text"] for answer in found], dtype=object)

    def _write(self, text: Text) -> dict[str, Any]:
        try:
            pieces = list(self.language.write(text.prompt, text.writing))
        except ArithmeticError as error:
            raise BrokenAnswer(str(error)) from error
        written = "".join(piece.text for piece in pieces)
        return {"text": written, "finish_reason": pieces[-1].finish, "tokens": len(pieces)}

    def _prompt(self, text: str, row: int) -> list[int]:
        try:
            return self.language.prompt(text)
        except ValueError as error:
            raise ContractViolation(
                f"instances.{row}.prompt", f"at most {self.language.layout.length} tokens", str(error)
            ) from None

    def _check_inputs(self) -> None:
        try:
            self.language = Language(self._folder, self._session)
            _ = self.language.encoder.vocabulary  # reads it, so that no request has to
        except (OSError, ValueError) as error:
            raise NotServable(f"the model's parts cannot be read: {error}") from error
        layout = self.language.layout
        wanted = [TOKENS, *([REMEMBERED, READ] if layout.masked else []), *(state.name for state in layout.states)]
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
