"""A graph with sparse features and edges. Shared by training and serving; needs only numpy.

N: nodes. F: features of a node. M: non-zero features of all nodes together. E: directed edges; each edge between two nodes
counts once in each direction.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Subgraph:
    """Some nodes of a graph, in the form that a network takes."""

    features: NDArray[np.float32]
    """`(nodes, F)`."""
    edges: Indices
    """`(E, 2)`: source and target of each edge, as rows of `features`."""

    def with_node(self, features: NDArray[np.float32], neighbours: Indices) -> Subgraph:
        """Returns a copy with one more node at the end, with features `(F,)` and the indices of its neighbours."""
        new = np.full(len(neighbours), len(self.features), dtype=np.int64)
        return Subgraph(np.vstack([self.features, features]), np.concatenate([self.edges, both_ways(new, neighbours)]))


@dataclass(frozen=True)
class Graph:
    """Nodes with indices 0 to N - 1. Row i of a ragged array is the slice from `starts[i]` to `starts[i + 1]`."""

    ids: NDArray[np.str_]
    """`(N,)`: the ids of the nodes in the data."""
    size: NDArray[np.int64]
    """F, as a zero-dimensional array."""
    feature_starts: Indices
    feature_index: NDArray[np.int32]
    """`(M,)`: indices of non-zero features, ascending within a node."""
    feature_values: NDArray[np.float32]
    """`(M,)`."""
    neighbour_starts: Indices
    neighbours: NDArray[np.int32]
    """`(E,)`: indices of neighbours, ascending within a node."""

    @property
    def features(self) -> int:
        return int(self.size)

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each node, by its id."""
        return {name: i for i, name in enumerate(self.ids.tolist())}

    @property
    def degrees(self) -> Indices:
        """`(N,)`: number of neighbours of each node."""
        return np.diff(self.neighbour_starts)

    @property
    def edges(self) -> Indices:
        """`(E, 2)`: source and target of each edge."""
        return np.stack([np.repeat(np.arange(len(self.ids)), self.degrees), self.neighbours.astype(np.int64)], axis=1)

    def around(self, nodes: Indices, hops: int) -> Indices:
        """Returns `nodes` and all nodes reached from them by at most `hops` edges, ascending."""
        found = frontier = np.unique(nodes)
        for _ in range(hops):
            near = np.unique(self.neighbours[ragged(self.neighbour_starts, frontier)])
            frontier = np.setdiff1d(near, found, assume_unique=True)
            if not len(frontier):
                break
            found = np.union1d(found, frontier)
        return found.astype(np.int64)

    def subgraph(self, nodes: Indices) -> Subgraph:
        """Returns `nodes`, which are ascending, with the edges between them."""
        features = np.zeros((len(nodes), self.features), dtype=np.float32)
        at = ragged(self.feature_starts, nodes)
        row = np.repeat(np.arange(len(nodes)), np.diff(self.feature_starts)[nodes])
        features[row, self.feature_index[at]] = self.feature_values[at]
        ends = self.neighbours[ragged(self.neighbour_starts, nodes)].astype(np.int64)
        begins = np.repeat(np.arange(len(nodes)), self.degrees[nodes])
        place = np.searchsorted(nodes, ends)
        inside = nodes[np.minimum(place, len(nodes) - 1)] == ends
        return Subgraph(features, np.stack([begins[inside], place[inside]], axis=1))

    def to_bytes(self) -> bytes:
        """Returns the graph as npz; equal graphs give equal bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{field.name: getattr(self, field.name) for field in fields(self)})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Graph:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            return cls(**{field.name: saved[field.name] for field in fields(cls)})


def make_graph(
    ids: Sequence[str],
    features: int,
    values: Sequence[tuple[NDArray[np.int32], NDArray[np.float32]]],
    edges: Indices,
) -> Graph:
    """Builds a graph from its parts.

    Args:
        features: F.
        values: for each node, the ascending indices of its non-zero features, and their values.
        edges: `(edges, 2)` indices of nodes; they count in both directions, and duplicates and self-loops are removed.
    """
    lengths = [len(index) for index, _ in values]
    kept = undirected(edges)
    return Graph(
        ids=np.array(ids, dtype=np.str_),
        size=np.array(features, dtype=np.int64),
        feature_starts=_starts(np.array(lengths, dtype=np.int64)),
        feature_index=np.concatenate([np.zeros(0, np.int32), *(index for index, _ in values)]),
        feature_values=np.concatenate([np.zeros(0, np.float32), *(value for _, value in values)]),
        neighbour_starts=_starts(np.bincount(kept[:, 0], minlength=len(ids))),
        neighbours=kept[:, 1].astype(np.int32),
    )


def both_ways(one: Indices, other: Indices) -> Indices:
    """Returns each edge in both directions, `(2 * edges, 2)`."""
    return np.concatenate([np.stack([one, other], axis=1), np.stack([other, one], axis=1)]).astype(np.int64)


def undirected(edges: Indices) -> Indices:
    """Returns each edge once in each direction, `(edges, 2)`, without self-loops."""
    ways = both_ways(edges[:, 0], edges[:, 1])
    return np.unique(ways[ways[:, 0] != ways[:, 1]], axis=0).reshape(-1, 2)


def ragged(starts: Indices, rows: Indices) -> Indices:
    """Returns the positions of the items of `rows` in a ragged array, row after row."""
    lengths = starts[rows + 1] - starts[rows]
    begins = np.cumsum(lengths) - lengths
    places: Indices = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts[rows] - begins, lengths)
    return places


def _starts(lengths: Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
