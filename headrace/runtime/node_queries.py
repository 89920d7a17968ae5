"""Predictions for nodes, shared by the service and the evaluation. Light: needs only numpy.

Three kinds of queries: a node of the stored graph, a new node with neighbours in it, and each node of a graph that the client
sends. However large the stored graph is, the network only runs on the part that an answer depends on. C: classes.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.contract import Contract
from headrace.runtime.graph import Graph, Indices, Subgraph
from headrace.runtime.graph_batch import GraphReader
from headrace.runtime.violations import ContractViolation, describe

HOPS = "headrace.hops"
"""Metadata key of the exported graph: the number of edges between a node and all that its answer depends on."""
NODES_PER_RUN = 1024
"""Known nodes that are predicted together, with the nodes around them."""
MAX_CELLS = 2**25
"""Most nodes times features of a graph in one run: 128 MiB of numbers."""
QUERIES = {"node": {"node"}, "features": {"features", "neighbours"}, "nodes": {"nodes", "edges"}}
"""The field that identifies each kind of query, and all fields of that query."""
FIELDS = set().union(*QUERIES.values())

Run = Callable[[Subgraph], NDArray[Any]]


class NodePredictor:
    """Answers queries with one network and one stored graph."""

    def __init__(self, graph: Graph, hops: int, run: Run, contract: Contract) -> None:
        """`run` returns probabilities `(nodes, C)`, which for a node depend on nodes at most `hops` edges away."""
        self.graph, self.hops, self.run, self.contract = graph, hops, run, contract
        self._reader = GraphReader(graph.features, MAX_CELLS)

    def answer(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Returns an answer for each of `instances`, in their order.

        Raises:
            ContractViolation: an instance breaks the contract; the path starts with `instances.<row>`.
        """
        queries = [self._query_of(instance, f"instances.{i}") for i, instance in enumerate(instances)]
        answers: list[dict[str, Any]] = [{}] * len(instances)
        known = [i for i, query in enumerate(queries) if query == "node"]
        indices = [self._index(instances[i]["node"], f"instances.{i}.node") for i in known]
        for i, answer in zip(known, self.contract.to_answers(self.known(np.array(indices, np.int64))), strict=True):
            answers[i] = answer
        for i, query in enumerate(queries):
            if query == "features":
                answers[i] = self.contract.to_answers(self._new(instances[i], f"instances.{i}"))[0]
            elif query == "nodes":
                answers[i] = {"nodes": self.contract.to_answers(self.run(self._reader.read(instances[i], f"instances.{i}")))}
        return answers

    def known(self, indices: Indices) -> NDArray[Any]:
        """Returns probabilities of nodes of the stored graph, `(len(indices), C)`."""
        is_small = len(self.graph.ids) * self.graph.features <= MAX_CELLS
        return self._all[indices] if is_small else self.in_batches(indices)

    def in_batches(self, indices: Indices) -> NDArray[Any]:
        """Returns the same as `known`, computed only from the surroundings of these nodes."""
        found = [np.zeros((0, len(self.contract.labels or ())))]
        for start in range(0, len(indices), NODES_PER_RUN):
            wanted = indices[start : start + NODES_PER_RUN]
            seen = self.graph.around(wanted, self.hops)
            found.append(self.run(self.graph.subgraph(seen))[np.searchsorted(seen, wanted)])
        return np.concatenate(found)

    def beside(self, features: NDArray[np.float32], neighbours: Indices) -> NDArray[Any]:
        """Returns probabilities `(1, C)` of a new node with `features` `(F,)` and the `neighbours` with these indices."""
        seen = self.graph.around(neighbours, self.hops - 1)
        subgraph = self.graph.subgraph(seen).with_node(features, np.searchsorted(seen, neighbours))
        return self.run(subgraph)[-1:]

    @cached_property
    def _all(self) -> NDArray[Any]:
        """Probabilities of all nodes of a small stored graph, computed once."""
        return self.run(self.graph.subgraph(np.arange(len(self.graph.ids))))

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.graph.index)

    def _query_of(self, instance: Any, path: str) -> str:
        """Returns the key of `QUERIES` for an instance."""
        queries = "a node, or features with neighbours, or nodes with edges"
        if not isinstance(instance, dict):
            raise ContractViolation(path, f"an object with {queries}", describe(instance))
        given = {name for name, value in instance.items() if value is not None}
        if unknown := sorted(given - FIELDS):
            expected = f"one of the fields {', '.join(sorted(FIELDS))}{_near(unknown[0], FIELDS)}"
            raise ContractViolation(f"{path}.{unknown[0]}", expected, "an unknown field")
        found = [query for query in QUERIES if query in given]
        if len(found) != 1:
            raise ContractViolation(path, queries, f"an object with {' and '.join(found)}" if found else "none of these")
        if others := sorted(given - QUERIES[found[0]]):
            expected = f"no field beside {' and '.join(sorted(QUERIES[found[0]]))}"
            raise ContractViolation(f"{path}.{others[0]}", expected, describe(instance[others[0]]))
        return found[0]

    def _index(self, node: Any, path: str) -> int:
        name = str(node) if isinstance(node, int) and not isinstance(node, bool) else node
        if not isinstance(name, str):
            raise ContractViolation(path, "the id of a node", describe(node))
        if name not in self.graph.index:
            at = bisect_left(self._sorted, name)
            near = _near(name, self._sorted[max(0, at - 50) : at + 50])
            raise ContractViolation(path, f"the id of a node of the graph{near}", describe(node))
        return self.graph.index[name]

    def _new(self, instance: dict[str, Any], path: str) -> NDArray[Any]:
        features = self._reader.row(instance["features"], f"{path}.features")
        given = instance.get("neighbours")
        names = given.split() if isinstance(given, str) else [] if given is None else given
        if not isinstance(names, list):
            raise ContractViolation(f"{path}.neighbours", "a list of ids", describe(given))
        indices = [self._index(name, f"{path}.neighbours.{i}") for i, name in enumerate(names)]
        return self.beside(features, np.unique(np.array(indices, np.int64)))


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
