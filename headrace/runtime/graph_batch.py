"""Reads graphs that clients send, and pads several of them into one batch. Shared by training and serving; light.

B: graphs of a batch. n, e: nodes and directed edges of its largest graph. F: features of a node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.graph import Subgraph, undirected
from headrace.runtime.input_field import InputField
from headrace.runtime.violations import ContractViolation, describe

MAX_CELLS = 2**22
"""Most nodes times features of one graph: 16 MiB of numbers."""
MAX_EDGES = 2**18
"""Most edges in a client's graph; each counts in both directions."""
CELLS_PER_RUN = 2**18
"""Numbers of all nodes, or ends of all edges, in one run of the network; a larger graph runs alone."""


class GraphReader:
    """Reads `{"nodes": [features, ...], "edges": [[from, to], ...]}`; `edges` is optional."""

    def __init__(self, features: int, most_cells: int = MAX_CELLS) -> None:
        """`features` is F; a graph has at most `most_cells` nodes times features."""
        self.features = features
        self.most_nodes = max(1, most_cells // features)
        self._row = InputField(name="features", dtype="float32", shape=(features,))

    def read(self, graph: dict[str, Any], path: str) -> Subgraph:
        """Returns the graph's features and edges, each edge in both directions, without self-loops.

        Raises:
            ContractViolation: no nodes or too many, features that are not F finite numbers, or an edge to an unknown node.
        """
        nodes = graph.get("nodes")
        if not isinstance(nodes, list) or not nodes:
            raise ContractViolation(f"{path}.nodes", "a list with the features of each node", describe(nodes))
        if len(nodes) > self.most_nodes:
            raise ContractViolation(f"{path}.nodes", f"at most {self.most_nodes} nodes", f"{len(nodes)} nodes")
        found = self._convert_together(nodes)
        if found is None:  # one by one, to name the invalid node
            found = np.stack([self.row(row, f"{path}.nodes.{i}") for i, row in enumerate(nodes)])
        return Subgraph(found, undirected(self._edges(graph.get("edges"), len(nodes), f"{path}.edges")))

    def row(self, value: Any, path: str) -> NDArray[np.float32]:
        """Returns features `(F,)`, from a list of all numbers or from `{"present": [positions of ones]}`.

        Raises:
            ContractViolation: the value is neither.
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
            if not _is_index(position, self.features):
                expected = f"a position from 0 to {self.features - 1}"
                raise ContractViolation(f"{path}.present.{i}", expected, describe(position))
            row[position] = 1
        return row

    def _convert_together(self, nodes: list[Any]) -> NDArray[np.float32] | None:
        """Converts all nodes together to `(nodes, F)`; None if a node may be invalid."""
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
        """Returns the edges as given, `(edges, 2)`."""
        if edges is None:
            edges = []
        if not isinstance(edges, list):
            raise ContractViolation(path, "a list of pairs", describe(edges))
        if len(edges) > MAX_EDGES:
            raise ContractViolation(path, f"at most {MAX_EDGES} edges", f"{len(edges)} edges")
        for i, edge in enumerate(edges):
            if not (isinstance(edge, list) and len(edge) == 2 and all(_is_index(end, nodes) for end in edge)):
                raise ContractViolation(f"{path}.{i}", f"two node indices from 0 to {nodes - 1}", describe(edge))
        return np.array(edges, np.int64).reshape(-1, 2)


def pad_graphs(graphs: Sequence[Subgraph]) -> dict[str, NDArray[Any]]:
    """Pads graphs to the largest one: `features` `(B, n, F)`, `edges` `(B, e, 2)` by index within the graph, and `sizes`
    `(B, 2)`, the true numbers of nodes and edges. e is at least 1."""
    sizes = np.array([[len(graph.features), len(graph.edges)] for graph in graphs], np.int64).reshape(-1, 2)
    most_nodes, most_edges = np.maximum(sizes.max(axis=0, initial=0), 1)
    width = graphs[0].features.shape[1] if graphs else 0
    features = np.zeros((len(graphs), most_nodes, width), np.float32)
    edges = np.zeros((len(graphs), most_edges, 2), np.int64)
    for i, graph in enumerate(graphs):
        features[i, : len(graph.features)] = graph.features
        edges[i, : len(graph.edges)] = graph.edges
    return {"features": features, "edges": edges, "sizes": sizes}


def run_by_size(graphs: Sequence[Subgraph], run: Callable[[dict[str, NDArray[Any]]], NDArray[Any]]) -> NDArray[Any]:
    """Returns the output of `run` for each graph, `(graphs, ...)`, in the order of `graphs`.

    Graphs of similar size run together, so that little padding is needed.
    """
    cost = [max(graph.features.size, graph.edges.size) for graph in graphs]
    order = sorted(range(len(graphs)), key=cost.__getitem__)
    together: list[list[int]] = [[]]
    for i in order:  # in rising order, so graph i is the largest so far
        if together[-1] and (len(together[-1]) + 1) * cost[i] > CELLS_PER_RUN:
            together.append([])
        together[-1].append(i)
    answers = np.concatenate([run(pad_graphs([graphs[i] for i in indices])) for indices in together])
    return answers[np.argsort(order)]


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
