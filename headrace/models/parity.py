"""Compares the answers of an exported graph with those of the torch model it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError
from headrace.models.onnx_inference import run_graph
from headrace.runtime.contract import Feeds

if TYPE_CHECKING:
    from headrace.models.served import ServedModel

PARITY_ROWS = (1, 33)
"""Sizes of the batches on which both are compared."""
TOLERANCE = 1e-4
"""Largest difference between torch and ONNX Runtime, relative to the largest answer: float32 sums in another order."""


def check_parity(model: ServedModel, path: Path, pairs: Iterable[tuple[Feeds, Feeds]], recipe: str) -> dict[str, float]:
    """Compares torch with the graph at `path`.

    Args:
        pairs: batches, each as the inputs of `model` and as the inputs of the graph.
        recipe: the recipe's name, for the error message.

    Returns:
        `largest_relative_difference` and `tolerance`.

    Raises:
        ExportError: the largest difference is above `TOLERANCE`.
    """
    import torch

    def answers() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for inputs, feeds in pairs:
            with torch.inference_mode():
                expected = model(*(torch.from_numpy(array) for array in inputs.values())).numpy()
            yield expected, run_graph(path, feeds)

    return check_answers(answers(), recipe)


def check_answers(answers: Iterable[tuple[NDArray[Any], NDArray[Any]]], recipe: str) -> dict[str, float]:
    """Compares pairs of answers, torch's first; returns and raises the same as `check_parity`."""
    largest = 0.0
    for expected, got in answers:
        scale = max(1.0, float(np.abs(expected).max()))
        # np.maximum, since Python's max would pass over a NaN
        largest = float(np.maximum(largest, np.abs(expected - got).max() / scale))
    if not largest <= TOLERANCE:
        raise ExportError(
            f"the exported graph differs from torch by {largest:.2g} (allowed: {TOLERANCE:g})",
            where=f"artifacts/{recipe}/export",
            hint="look for an operation in the model that ONNX computes differently; the models are in headrace/models/",
        )
    return {"largest_relative_difference": largest, "tolerance": TOLERANCE}
