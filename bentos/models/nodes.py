"""A served node classifier: nodes of the stored graph, new nodes beside them, and graphs that a client sends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.onnx_model import InvalidOutput, NotServable, OnnxModel
from headrace.runtime.graph import Graph, Subgraph
from headrace.runtime.node_queries import HOPS, NodePredictor
from headrace.runtime.violations import ContractViolation


class NodeModel(OnnxModel):
    """A network over a stored graph: `model.onnx` takes features and edges, `graph.npz` holds the known nodes.

    Raises:
        NotServable: the graph is missing, or does not fit the network.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        try:
            self._graph = Graph.from_bytes((folder / "graph.npz").read_bytes())
        except (OSError, KeyError, ValueError) as error:
            raise NotServable(f"graph.npz cannot be read: {error}") from error
        super().__init__(folder, threads)

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        return self._answers.answer(instances)

    def run_subgraph(self, subgraph: Subgraph) -> NDArray[Any]:
        """Returns the probabilities of each node, `(nodes, classes)`."""
        output: NDArray[Any] = self._session.run([self._output], {"features": subgraph.features, "edges": subgraph.edges})[0]
        if output.shape != (len(subgraph.features), len(self.contract.labels or ())):
            raise InvalidOutput(f"the graph gave shape {output.shape} for {len(subgraph.features)} nodes")
        if not np.isfinite(output).all():
            raise InvalidOutput("the graph gave NaN or infinity")
        return output

    def _check_inputs(self) -> None:
        """Checks the network's inputs and reads its number of hops, before the first prediction."""
        width = self._session.get_inputs()[0].shape[-1]
        hops = self._session.get_modelmeta().custom_metadata_map.get(HOPS, "")
        if self._inputs != ["features", "edges"] or width != self._graph.features or not hops.isdigit():
            raise NotServable(
                f"the network takes {self._inputs} with {width} features; the stored graph has {self._graph.features}"
            )
        self._answers = NodePredictor(self._graph, int(hops), self.run_subgraph, self.contract)

    def _warm(self) -> float:
        """Also predicts the examples, one for each kind of query; returns the seconds of the slowest."""
        seconds = super()._warm()
        try:
            for example in self.contract.examples:
                start = time.perf_counter()
                self.predict([example])
                seconds = max(seconds, time.perf_counter() - start)
        except (ContractViolation, InvalidOutput) as error:
            raise NotServable(f"an example of the contract cannot be predicted: {error}") from error
        return seconds
