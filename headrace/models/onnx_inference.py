"""Runs exported graphs with ONNX Runtime, for evaluation and for the parity check."""

from __future__ import annotations

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


def run_graph(path: Path, feeds: Feeds, batch: int = 4096) -> NDArray[Any]:
    """Returns the graph's answers for all rows, `(rows,)` or `(rows, classes)`, computed batch by batch."""
    session = open_graph(path)
    rows = len(next(iter(feeds.values())))
    parts = [session.run(None, {k: v[i : i + batch] for k, v in feeds.items()})[0] for i in range(0, rows, batch)]
    return np.concatenate(parts)
