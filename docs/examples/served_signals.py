"""Serves models of `signals.py`. This file goes into the bento, so it imports only `bentos`, `headrace.runtime` and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.onnx_model import OnnxModel
from headrace.runtime.contract import Feeds
from headrace.runtime.violations import ContractViolation


class SignalModel(OnnxModel):
    """Decodes signals, and answers with a direction instead of a label."""

    def to_feeds(self, instances: list[Any]) -> Feeds:
        texts = self.contract.to_feeds(instances)["signal"]
        try:
            return {"signal": np.stack([decode(text) for text in texts])}
        except ValueError as error:
            raise ContractViolation("instances", "two numbers like 0.1,0.9", str(error)) from None

    def to_answers(self, outputs: NDArray[Any]) -> list[dict[str, Any]]:
        return [{"direction": answer["label"]} for answer in super().to_answers(outputs)]


def decode(text: str) -> NDArray[np.float32]:
    """Returns the samples of a signal, `(2,)`.

    Raises:
        ValueError: these are not two numbers.
    """
    samples = np.array([float(part) for part in text.split(",")], dtype=np.float32)
    if samples.shape != (2,):
        raise ValueError(f"{len(samples)} numbers")
    return samples
