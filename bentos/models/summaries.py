"""A served summariser: an encoder graph, a decoder graph and a beam search for one text field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.onnx_model import InvalidOutput, NotServable, OnnxModel, open_session
from headrace.runtime.beam_search import DECODER, Summariser
from headrace.runtime.contract import Feeds
from headrace.runtime.violations import ContractViolation

MAX_TEXTS = 256
"""Most texts of one request: more would keep others waiting for seconds."""


class SummaryModel(OnnxModel):
    """Takes one text field; answers a summary with its score."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._folder = folder
        self._threads = threads
        super().__init__(folder, threads)

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Answers `summary` and `score`, the log-probability of its tokens over the length penalty; higher is more certain.

        Raises:
            ContractViolation: also for an empty text, or more than `MAX_TEXTS` texts.
        """
        found = self._summarise(self.to_feeds(instances))
        return [{"summary": summary, "score": round(score, 6)} for summary, score in found]

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """Returns the summaries alone, `(rows,)`."""
        return np.array([summary for summary, _ in self._summarise(feeds)], dtype=object)

    def _summarise(self, feeds: Feeds) -> list[tuple[str, float]]:
        ((name, texts),) = feeds.items()
        if len(texts) > MAX_TEXTS:
            raise ContractViolation("instances", f"at most {MAX_TEXTS} texts", f"{len(texts)}")
        for row, text in enumerate(texts):
            if not text.strip():
                raise ContractViolation(f"instances.{row}.{name}", "a text to summarise", "an empty text")
        found = self._summariser.summarise(texts.tolist())
        if not all(math.isfinite(score) for _, score in found):
            raise InvalidOutput("the graph gave NaN or infinity")
        return found

    def _check_inputs(self) -> None:
        fields = self.contract.inputs
        if len(fields) != 1 or fields[0].dtype != "string":
            raise NotServable(f"the contract has {[field.name for field in fields]}, not one text")
        threads = self._threads or self.contract.threads
        try:
            self._summariser = Summariser(
                self._folder,
                lambda graph: self._session if graph.name == DECODER else open_session(graph, threads),
            )
        except (OSError, ValueError) as error:
            raise NotServable(f"the model's files cannot be read: {error}") from error
