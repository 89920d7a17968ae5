"""The served side of a graph: known nodes, new nodes beside them, and graphs that a client brings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.served_model import BrokenAnswer, NotServable, ServedModel
from headrace.runtime.contract import ContractViolation
from headrace.runtime.graph import Graph, Part
from headrace.runtime.node_queries import HOPS, NodeAnswers


class NodeModel(ServedModel):
    """A network over a stored graph: `model.onnx` takes features and edges, `graph.npz` holds the nodes that are known.

    Raises:
        NotServable: the graph is missing, or is another network's.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            self._graph = Graph.from_bytes((folder / "graph.npz").read_bytes())
        except (OSError, KeyError, ValueError) as error:
            raise NotServable(f"graph.npz cannot be read: {error}") from error
        super().__init__(folder, threads)

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        return self._answers.answer(instances)

    def run_part(self, part: Part) -> NDArray[Any]:
        """Probabilities `(nodes, classes)` of each node of `part`."""
        output: NDArray[Any] = self._session.run([self._output], {"features": part.features, "edges": part.edges})[0]
        if output.shape != (len(part.features), len(self.contract.labels or ())):
            raise BrokenAnswer(f"the graph gave shape {output.shape} for {len(part.features)} nodes")
        if not np.isfinite(output).all():
            raise BrokenAnswer("the graph gave NaN or infinity")
        return output

    def _check_inputs(self) -> None:
        """The network's inputs, and how far it looks; called before the first answer."""
        width = self._session.get_inputs()[0].shape[-1]
        hops = self._session.get_modelmeta().custom_metadata_map.get(HOPS, "")
        if self._inputs != ["features", "edges"] or width != self._graph.features or not hops.isdigit():
            raise NotServable(
                f"the network takes {self._inputs} with {width} features; the stored graph has {self._graph.features}"
            )
        self._answers = NodeAnswers(self._graph, int(hops), self.run_part, self.contract)

    def _warm(self) -> float:
        """Every way to ask has to work, not the sample alone; the slowest counts."""
        seconds = super()._warm()
        try:
            for example in self.contract.examples:
                start = time.perf_counter()
                self.predict([example])
                seconds = max(seconds, time.perf_counter() - start)
        except (ContractViolation, BrokenAnswer) as error:
            raise NotServable(f"an example of the contract cannot be predicted: {error}") from error
        return seconds
