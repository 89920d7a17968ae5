"""Graphs as clients bring them, and many of them as one batch. Shared by training and serving; light: numpy alone.

B: graphs of a batch. n, e: nodes and directed edges of its largest graph. F: features of a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.contract import ContractViolation, InputField, describe
from headrace.runtime.graph import Part, undirected

MOST_CELLS = 2**22
"""Nodes times features of one graph: 16 MiB of numbers."""
MOST_EDGES = 2**18
"""Pairs that one graph may name; each counts in both directions."""
CELLS_PER_RUN = 2**18
"""Numbers of all nodes, or ends of all edges, that go through the network at once; a larger graph goes alone."""


class GraphReader:
    """Reads `{"nodes": [features, ...], "edges": [[from, to], ...]}`; edges may be left out."""

    def __init__(self, features: int, most_cells: int = MOST_CELLS) -> None:
        """`features` is F; a graph has at most `most_cells` nodes times features."""
        self.features = features
        self.most_nodes = max(1, most_cells // features)
        self._row = InputField(name="features", dtype="float32", shape=(features,))

    def read(self, graph: dict[str, Any], path: str) -> Part:
        """The graph's features and edges, each edge in both directions, no node its own neighbour.

        Raises:
            ContractViolation: no node or too many, features that are no F finite numbers, an edge to a node that is not there.
        """
        nodes = graph.get("nodes")
        if not isinstance(nodes, list) or not nodes:
            raise ContractViolation(f"{path}.nodes", "a list with the features of each node", describe(nodes))
        if len(nodes) > self.most_nodes:
            raise ContractViolation(f"{path}.nodes", f"at most {self.most_nodes} nodes", f"{len(nodes)} nodes")
        found = self._all_at_once(nodes)
        if found is None:  # one by one, to name the node at fault
            found = np.stack([self.row(row, f"{path}.nodes.{i}") for i, row in enumerate(nodes)])
        return Part(found, undirected(self._edges(graph.get("edges"), len(nodes), f"{path}.edges")))

    def row(self, value: Any, path: str) -> NDArray[np.float32]:
        """`(F,)`, from all numbers or from the positions of the ones.

        Raises:
            ContractViolation: it is neither.
        """
        if not isinstance(value, dict):
            try:
                found: NDArray[np.float32] = self._row.to_array([value], "one")[0]
            except ContractViolation as violation:
                expected = f'{violation.expected}, or {{"present": [positions]}}'
                raise ContractViolation(path, expected, violation.got) from None
            return found
        if set(value) != {"present"} or not isinstance(value["present"], list):
            raise ContractViolation(path, '{"present": [positions]}', describe(value))
        row = np.zeros(self.features, np.float32)
        for i, position in enumerate(value["present"]):
            if not _is_place(position, self.features):
                expected = f"a position from 0 to {self.features - 1}"
                raise ContractViolation(f"{path}.present.{i}", expected, describe(position))
            row[position] = 1
        return row

    def _all_at_once(self, nodes: list[Any]) -> NDArray[np.float32] | None:
        """`(nodes, F)`; None when some node needs a closer look."""
        try:
            numbers = np.asarray(nodes)
            if numbers.dtype.kind not in "iuf" or numbers.shape != (len(nodes), self.features):
                return None
            with np.errstate(over="ignore"):
                found: NDArray[np.float32] = numbers.astype(np.float32)
        except (ValueError, OverflowError):
            return None
        return found if np.isfinite(found).all() else None

    def _edges(self, edges: Any, nodes: int, path: str) -> NDArray[np.int64]:
        """`(edges, 2)`, as they are named."""
        if edges is None:
            edges = []
        if not isinstance(edges, list):
            raise ContractViolation(path, "a list of pairs", describe(edges))
        if len(edges) > MOST_EDGES:
            raise ContractViolation(path, f"at most {MOST_EDGES} edges", f"{len(edges)} edges")
        for i, edge in enumerate(edges):
            if not (isinstance(edge, list) and len(edge) == 2 and all(_is_place(end, nodes) for end in edge)):
                raise ContractViolation(f"{path}.{i}", f"two places from 0 to {nodes - 1}", describe(edge))
        return np.array(edges, np.int64).reshape(-1, 2)


def batch(parts: Sequence[Part]) -> dict[str, NDArray[Any]]:
    """Graphs filled up to the largest: `features` `(B, n, F)`, `edges` `(B, e, 2)` by places within their graph, and `sizes`
    `(B, 2)`, how many nodes and edges of these are the graph's own. There is room for one edge at least."""
    sizes = np.array([[len(part.features), len(part.edges)] for part in parts], np.int64).reshape(-1, 2)
    most_nodes, most_edges = np.maximum(sizes.max(axis=0, initial=0), 1)
    width = parts[0].features.shape[1] if parts else 0
    features = np.zeros((len(parts), most_nodes, width), np.float32)
    edges = np.zeros((len(parts), most_edges, 2), np.int64)
    for i, part in enumerate(parts):
        features[i, : len(part.features)] = part.features
        edges[i, : len(part.edges)] = part.edges
    return {"features": features, "edges": edges, "sizes": sizes}


def answer_by_size(parts: Sequence[Part], run: Callable[[dict[str, NDArray[Any]]], NDArray[Any]]) -> NDArray[Any]:
    """What `run` answers for each graph, `(graphs, ...)`, in the order of `parts`.

    Graphs of like size go together, so that little is filled up.
    """
    cost = [max(part.features.size, part.edges.size) for part in parts]
    order = sorted(range(len(parts)), key=cost.__getitem__)
    together: list[list[int]] = [[]]
    for i in order:  # the largest so far is the latest
        if together[-1] and (len(together[-1]) + 1) * cost[i] > CELLS_PER_RUN:
            together.append([])
        together[-1].append(i)
    answers = np.concatenate([run(batch([parts[i] for i in places])) for places in together])
    return answers[np.argsort(order)]


def _is_place(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
