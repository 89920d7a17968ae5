"""A served language model: generates a text for each prompt, whole or as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.onnx_model import InvalidOutput, NotServable, OnnxModel
from headrace.runtime.contract import Feeds
from headrace.runtime.generation import READ, REMEMBERED, TOKENS, GenerationRequest, SamplingParams, TextGenerator
from headrace.runtime.violations import ContractViolation

MAX_TEXTS = 32
"""Most prompts in one request."""
MAX_TOKENS = 32_000
"""Most tokens that one request may generate for all its prompts together."""


class GenerationModel(OnnxModel):
    """Takes the contract's `prompt` and sampling fields; answers `text`, `finish_reason` and the number of `tokens`."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._folder = folder
        super().__init__(folder, threads)

    def generation_requests(self, instances: list[Any]) -> list[GenerationRequest]:
        """Checks all instances and returns the text to generate for each.

        A generated text is a list of events `{"text": ...}`, one for each step of the graph; the last one also has
        `finish_reason` and `tokens`.

        Raises:
            ContractViolation: also for a prompt that exceeds the model's context, for more than `MAX_TEXTS` prompts, or for
                more than `MAX_TOKENS` tokens to generate.
        """
        if len(instances) > MAX_TEXTS:
            raise ContractViolation("instances", f"at most {MAX_TEXTS} prompts", f"{len(instances)}")
        feeds = self.to_feeds(instances)
        if (tokens := int(feeds["max_tokens"].sum())) > MAX_TOKENS:
            raise ContractViolation("instances", f"max_tokens of at most {MAX_TOKENS:,} together", f"{tokens:,}")
        return self._requests(feeds)

    def join(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Merges the events of one text into its answer."""
        return {**events[-1], "text": "".join(event["text"] for event in events)}

    @property
    def generates(self) -> bool:
        return True

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Generates the texts one after another."""
        return [self._generate(text) for text in self.generation_requests(instances)]

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """Returns the texts alone, `(rows,)`."""
        answers = [self._generate(request) for request in self._requests(feeds)]
        return np.array([answer["text"] for answer in answers], dtype=object)

    def _requests(self, feeds: Feeds) -> list[GenerationRequest]:
        prompts = [self._prompt(text, row) for row, text in enumerate(feeds["prompt"])]
        return [GenerationRequest(self.generator, prompt, _sampling(feeds, row)) for row, prompt in enumerate(prompts)]

    def _generate(self, text: GenerationRequest) -> dict[str, Any]:
        try:
            chunks = list(self.generator.generate(text.prompt, text.sampling))
        except ArithmeticError as error:
            raise InvalidOutput(str(error)) from error
        generated = "".join(chunk.text for chunk in chunks)
        return {"text": generated, "finish_reason": chunks[-1].finish, "tokens": len(chunks)}

    def _prompt(self, text: str, row: int) -> list[int]:
        try:
            return self.generator.prompt(text)
        except ValueError as error:
            raise ContractViolation(
                f"instances.{row}.prompt", f"at most {self.generator.layout.length} tokens", str(error)
            ) from None

    def _check_inputs(self) -> None:
        try:
            self.generator = TextGenerator(self._folder, self._session)
            _ = self.generator.encoder.vocabulary  # loads it now instead of with the first request
        except (OSError, ValueError) as error:
            raise NotServable(f"the model's files cannot be read: {error}") from error
        layout = self.generator.layout
        wanted = [TOKENS, *([REMEMBERED, READ] if layout.masked else []), *(state.name for state in layout.states)]
        if self._inputs != wanted:
            raise NotServable(f"the graph takes {self._inputs}, expected {wanted}")


def _sampling(feeds: Feeds, row: int) -> SamplingParams:
    seed = int(feeds["seed"][row])
    return SamplingParams(
        max_tokens=int(feeds["max_tokens"][row]),
        temperature=float(feeds["temperature"][row]),
        top_k=int(feeds["top_k"][row]),
        top_p=float(feeds["top_p"][row]),
        seed=None if seed < 0 else seed,
        stop=str(feeds["stop"][row]),
    )
