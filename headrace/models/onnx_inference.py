"""Runs exported graphs with ONNX Runtime, for evaluation and for the parity check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.contract import Feeds

if TYPE_CHECKING:
    import onnxruntime


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """Loads a graph, to run on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


BATCH = 4096
"""Most rows that are answered together."""
IMAGE_BYTES = 16 * 2**20
"""Most bytes of images, in float32, that are answered together: the layers of a network hold many times as much."""


def rows_at_once(shape: Sequence[int]) -> int:
    """Returns how many rows of an input `(rows, ...)` are computed together: fewer of large images, `(rows, height, width)` or
    with channels."""
    return BATCH if len(shape) < 3 else max(1, min(BATCH, IMAGE_BYTES // (4 * math.prod(shape[1:]))))


def run_graph(path: Path, feeds: Feeds, batch: int = BATCH) -> NDArray[Any]:
    """Returns the graph's answers for all rows, `(rows,)` or `(rows, classes)`, computed batch by batch."""
    session = open_graph(path)
    rows = len(next(iter(feeds.values())))
    batch = min(batch, *(rows_at_once(array.shape) for array in feeds.values()))
    parts = [session.run(None, {k: v[i : i + batch] for k, v in feeds.items()})[0] for i in range(0, rows, batch)]
    return np.concatenate(parts)
