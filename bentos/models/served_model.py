"""What all served models have: a contract, an identity, and answers to instances."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.violations import ContractViolation


class NotServable(Exception):
    """The model in a folder cannot be served as its contract says."""


class InvalidOutput(Exception):
    """The model's output does not fit the contract: another shape, NaN or infinity."""


class ServedModel:
    """One model version. A subclass loads what computes the answers, and then calls `_warm`."""

    sample_seconds = 0.0
    """How long the contract's sample takes."""
    batching: dict[str, Any] | None = None
    """`{"max_rows", "wait_seconds"}` if requests run together."""

    def __init__(self, folder: Path) -> None:
        """Reads `contract.json` and, if present, `identity.json`."""
        self.contract = Contract.read(folder / "contract.json")
        self.identity = _read_identity(folder / "identity.json")
        self.name = self.contract.model
        self.version = self.identity.get("version", "0")

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Returns an answer for each of `instances`, in their order.

        Raises:
            ContractViolation: an instance breaks the contract; the path starts with `instances.<row>`.
            InvalidOutput: the output does not fit the contract.
        """
        return self.to_answers(self.run(self.to_feeds(instances)))

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """Returns the output for all rows of `feeds`, `(rows, *contract.answer_shape)`.

        Raises:
            TypeError: the model writes texts, which `predict` alone returns.
        """
        raise TypeError(f"{type(self).__name__} has no output for each row; use predict")

    @property
    def warns(self) -> bool:
        """Whether answers come with warnings about values that no training row had; not those of a custom `predict`."""
        return type(self).predict is ServedModel.predict and type(self).to_answers is ServedModel.to_answers

    @property
    def generates(self) -> bool:
        """Whether the model generates text, and so is listed among OpenAI's models."""
        return False

    @property
    def failure(self) -> str:
        """Why the model cannot answer any more, as one whose server has ended; empty while it can."""
        return ""

    def close(self) -> None:
        """Releases what the model holds outside of this process."""

    def to_feeds(self, instances: list[Any]) -> Feeds:
        try:
            return self.contract.to_feeds(instances)
        except OverflowError:  # an integer of hundreds of digits is valid JSON, but no float64
            raise ContractViolation("instances", "numbers that fit 64 bits", "a number too large") from None

    def to_answers(self, outputs: NDArray[Any]) -> list[dict[str, Any]]:
        return self.contract.to_answers(outputs)

    def _warm(self) -> float:
        """Predicts the sample twice, because the first run initialises the runtime, and returns the seconds of the second.

        Raises:
            NotServable: the sample cannot be predicted.
        """
        try:
            self.predict([self.contract.sample])
            start = time.perf_counter()
            self.predict([self.contract.sample])
        except (ContractViolation, InvalidOutput) as error:
            raise NotServable(f"the contract's own sample cannot be predicted: {error}") from error
        return time.perf_counter() - start


def _read_identity(path: Path) -> dict[str, str]:
    return {str(k): str(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()} if path.is_file() else {}
