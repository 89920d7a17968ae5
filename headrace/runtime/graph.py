"""A graph in sparse form: its nodes, their features, who is whose neighbour. Shared by training and serving; numpy alone.

N: nodes. F: features of a node. M: features that are not zero, of all nodes together. E: directed edges; each edge between two
nodes counts once in each direction.
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
class Part:
    """Some nodes of a graph as the network takes them."""

    features: NDArray[np.float32]
    """`(nodes, F)`."""
    edges: Indices
    """`(E, 2)`: from which node to which, by their place in `features`."""

    def with_node(self, features: NDArray[np.float32], neighbours: Indices) -> Part:
        """One node more, at the end: its features `(F,)`, and the places of its neighbours."""
        new = np.full(len(neighbours), len(self.features), dtype=np.int64)
        return Part(np.vstack([self.features, features]), np.concatenate([self.edges, both_ways(new, neighbours)]))


@dataclass(frozen=True)
class Graph:
    """Nodes in ascending places 0 to N - 1. Row i of a ragged array lies from `starts[i]` to `starts[i + 1]`."""

    ids: NDArray[np.str_]
    """`(N,)`: what people call the nodes."""
    size: NDArray[np.int64]
    """F, as an array of no dimension."""
    feature_starts: Indices
    feature_index: NDArray[np.int32]
    """`(M,)`: which features of a node are not zero, ascending."""
    feature_values: NDArray[np.float32]
    """`(M,)`."""
    neighbour_starts: Indices
    neighbours: NDArray[np.int32]
    """`(E,)`: places of each node's neighbours, ascending."""

    @property
    def features(self) -> int:
        return int(self.size)

    @cached_property
    def place(self) -> dict[str, int]:
        """The place of each node."""
        return {name: i for i, name in enumerate(self.ids.tolist())}

    @property
    def degrees(self) -> Indices:
        """`(N,)`: how many neighbours each node has."""
        return np.diff(self.neighbour_starts)

    @property
    def edges(self) -> Indices:
        """`(E, 2)`: from which node to which."""
        return np.stack([np.repeat(np.arange(len(self.ids)), self.degrees), self.neighbours.astype(np.int64)], axis=1)

    def around(self, nodes: Indices, hops: int) -> Indices:
        """`nodes`, and all that are reached from them by at most `hops` edges; ascending."""
        found = frontier = np.unique(nodes)
        for _ in range(hops):
            near = np.unique(self.neighbours[ragged(self.neighbour_starts, frontier)])
            frontier = np.setdiff1d(near, found, assume_unique=True)
            if not len(frontier):
                break
            found = np.union1d(found, frontier)
        return found.astype(np.int64)

    def part(self, nodes: Indices) -> Part:
        """`nodes`, ascending, and the edges among them."""
        features = np.zeros((len(nodes), self.features), dtype=np.float32)
        at = ragged(self.feature_starts, nodes)
        row = np.repeat(np.arange(len(nodes)), np.diff(self.feature_starts)[nodes])
        features[row, self.feature_index[at]] = self.feature_values[at]
        ends = self.neighbours[ragged(self.neighbour_starts, nodes)].astype(np.int64)
        begins = np.repeat(np.arange(len(nodes)), self.degrees[nodes])
        place = np.searchsorted(nodes, ends)
        inside = nodes[np.minimum(place, len(nodes) - 1)] == ends
        return Part(features, np.stack([begins[inside], place[inside]], axis=1))

    def to_bytes(self) -> bytes:
        """As npz; equal graphs give equal bytes."""
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
    """A graph from its parts.

    Args:
        features: F.
        values: of each node, which of its features are not zero, ascending, and their values.
        edges: `(edges, 2)` places of nodes; they count in both directions, however often they stand there, and no node is
            its own neighbour.
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
    """`(2 * edges, 2)`: each edge in both directions."""
    return np.concatenate([np.stack([one, other], axis=1), np.stack([other, one], axis=1)]).astype(np.int64)


def undirected(edges: Indices) -> Indices:
    """`(edges, 2)` places, each edge once in each direction, no node its own neighbour."""
    ways = both_ways(edges[:, 0], edges[:, 1])
    return np.unique(ways[ways[:, 0] != ways[:, 1]], axis=0).reshape(-1, 2)


def ragged(starts: Indices, rows: Indices) -> Indices:
    """Where the items of `rows` lie in a ragged array, row after row."""
    lengths = starts[rows + 1] - starts[rows]
    begins = np.cumsum(lengths) - lengths
    places: Indices = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts[rows] - begins, lengths)
    return places


def _starts(lengths: Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
