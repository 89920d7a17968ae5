"""Random graphs."""

from __future__ import annotations

import numpy as np

from headrace.runtime.graph import Graph, make_graph


def random_graph(nodes: int, edges: int, features: int = 5, seed: int = 0) -> tuple[Graph, np.ndarray, set[tuple[int, int]]]:
    """A graph, its features in full, and its edges in both directions."""
    rng = np.random.default_rng(seed)
    full = (rng.random((nodes, features)) < 0.3) * rng.normal(size=(nodes, features)).astype(np.float32)
    drawn = rng.integers(0, nodes, (edges, 2))
    rows = [np.flatnonzero(row).astype(np.int32) for row in full]
    values = [(at, row[at]) for at, row in zip(rows, full, strict=True)]
    made = make_graph([f"n{i}" for i in range(nodes)], features, values, drawn)
    return made, full, {(int(i), int(j)) for a, b in drawn for i, j in ((a, b), (b, a)) if i != j}
