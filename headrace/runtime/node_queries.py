"""Questions about nodes, from instances to probabilities: shared by the service and the evaluation. Light: numpy alone.

Three ways to ask: for a node of the stored graph, for a new node beside it, for each node of a graph of one's own. However
large the stored graph, the network sees of it what an answer depends on and no more. C: classes.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.contract import Contract, ContractViolation, describe
from headrace.runtime.graph import Graph, Indices, Part
from headrace.runtime.graph_batch import GraphReader

HOPS = "headrace.hops"
"""Metadata of the exported graph: over how many edges lies what a node's answer depends on."""
NODES_PER_RUN = 1024
"""So many known nodes are answered together, with all that is around them."""
MOST_CELLS = 2**25
"""Nodes times features of a graph that is taken at once: 128 MiB of numbers."""
WAYS = {"node": {"node"}, "features": {"features", "neighbours"}, "nodes": {"nodes", "edges"}}
"""The field that says how a client asks, and the fields that belong to it."""
FIELDS = set().union(*WAYS.values())

Run = Callable[[Part], NDArray[Any]]


class NodeAnswers:
    """Answers by one network and one stored graph."""

    def __init__(self, graph: Graph, hops: int, run: Run, contract: Contract) -> None:
        """`run` gives probabilities `(nodes, C)`; what it gives for a node depends on what lies `hops` edges around it."""
        self.graph, self.hops, self.run, self.contract = graph, hops, run, contract
        self._reader = GraphReader(graph.features, MOST_CELLS)

    def answer(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Answers in the order of `instances`.

        Raises:
            ContractViolation: an instance breaks the contract; its path starts with `instances.<row>`.
        """
        asked = [self._way(instance, f"instances.{i}") for i, instance in enumerate(instances)]
        answers: list[dict[str, Any]] = [{}] * len(instances)
        known = [i for i, way in enumerate(asked) if way == "node"]
        places = [self._place(instances[i]["node"], f"instances.{i}.node") for i in known]
        for i, answer in zip(known, self.contract.to_answers(self.known(np.array(places, np.int64))), strict=True):
            answers[i] = answer
        for i, way in enumerate(asked):
            if way == "features":
                answers[i] = self.contract.to_answers(self._new(instances[i], f"instances.{i}"))[0]
            elif way == "nodes":
                answers[i] = {"nodes": self.contract.to_answers(self.run(self._reader.read(instances[i], f"instances.{i}")))}
        return answers

    def known(self, places: Indices) -> NDArray[Any]:
        """`(len(places), C)`: for nodes of the stored graph."""
        is_small = len(self.graph.ids) * self.graph.features <= MOST_CELLS
        return self._all[places] if is_small else self.in_parts(places)

    def in_parts(self, places: Indices) -> NDArray[Any]:
        """As `known`, from what lies around these nodes alone."""
        found = [np.zeros((0, len(self.contract.labels or ())))]
        for start in range(0, len(places), NODES_PER_RUN):
            wanted = places[start : start + NODES_PER_RUN]
            seen = self.graph.around(wanted, self.hops)
            found.append(self.run(self.graph.part(seen))[np.searchsorted(seen, wanted)])
        return np.concatenate(found)

    def beside(self, features: NDArray[np.float32], neighbours: Indices) -> NDArray[Any]:
        """`(1, C)`: for a node with `features` `(F,)` that would be a new neighbour of those at the places `neighbours`."""
        seen = self.graph.around(neighbours, self.hops - 1)
        part = self.graph.part(seen).with_node(features, np.searchsorted(seen, neighbours))
        return self.run(part)[-1:]

    @cached_property
    def _all(self) -> NDArray[Any]:
        """For every node of a stored graph that is small enough to be answered at once, and then never again."""
        return self.run(self.graph.part(np.arange(len(self.graph.ids))))

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.graph.place)

    def _way(self, instance: Any, path: str) -> str:
        """Which of `WAYS` an instance takes."""
        ways = "a node, or features with neighbours, or nodes with edges"
        if not isinstance(instance, dict):
            raise ContractViolation(path, f"an object with {ways}", describe(instance))
        given = {name for name, value in instance.items() if value is not None}
        if unknown := sorted(given - FIELDS):
            expected = f"one of the fields {', '.join(sorted(FIELDS))}{_near(unknown[0], FIELDS)}"
            raise ContractViolation(f"{path}.{unknown[0]}", expected, "an unknown field")
        said = [way for way in WAYS if way in given]
        if len(said) != 1:
            raise ContractViolation(path, ways, f"an object with {' and '.join(said)}" if said else "none of these")
        if others := sorted(given - WAYS[said[0]]):
            expected = f"nothing beside {' and '.join(sorted(WAYS[said[0]]))}"
            raise ContractViolation(f"{path}.{others[0]}", expected, describe(instance[others[0]]))
        return said[0]

    def _place(self, node: Any, path: str) -> int:
        name = str(node) if isinstance(node, int) and not isinstance(node, bool) else node
        if not isinstance(name, str):
            raise ContractViolation(path, "the id of a node", describe(node))
        if name not in self.graph.place:
            at = bisect_left(self._sorted, name)
            near = _near(name, self._sorted[max(0, at - 50) : at + 50])
            raise ContractViolation(path, f"the id of a node of the graph{near}", describe(node))
        return self.graph.place[name]

    def _new(self, instance: dict[str, Any], path: str) -> NDArray[Any]:
        features = self._reader.row(instance["features"], f"{path}.features")
        given = instance.get("neighbours")
        names = given.split() if isinstance(given, str) else [] if given is None else given
        if not isinstance(names, list):
            raise ContractViolation(f"{path}.neighbours", "a list of ids", describe(given))
        places = [self._place(name, f"{path}.neighbours.{i}") for i, name in enumerate(names)]
        return self.beside(features, np.unique(np.array(places, np.int64)))


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
