"""A served graph classifier: clients send graphs of any size, and each gets one answer."""

from __future__ import annotations

import difflib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.onnx_model import InvalidOutput, NotServable, OnnxModel
from headrace.runtime.contract import Feeds
from headrace.runtime.graph import Subgraph
from headrace.runtime.graph_batch import GraphReader, run_by_size
from headrace.runtime.violations import ContractViolation, describe

FIELDS = ["nodes", "edges"]


class GraphModel(OnnxModel):
    """Answers `{"nodes": [features, ...], "edges": [[from, to], ...]}` with a label and probabilities.

    Raises:
        NotServable: the ONNX graph takes other inputs.
    """

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        parts = [self._read(instance, f"instances.{i}") for i, instance in enumerate(instances)]
        return self.to_answers(run_by_size(parts, self.run))

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """Returns probabilities `(graphs, classes)` of a batch, as `headrace.runtime.graph_batch.pad_graphs` makes it."""
        output: NDArray[Any] = self._session.run([self._output], feeds)[0]
        if output.shape != (len(feeds["sizes"]), *self.contract.answer_shape):
            raise InvalidOutput(f"the graph gave shape {output.shape} for {len(feeds['sizes'])} graphs")
        if not np.isfinite(output).all():
            raise InvalidOutput("the graph gave NaN or infinity")
        return output

    def _read(self, instance: Any, path: str) -> Subgraph:
        if not isinstance(instance, dict):
            raise ContractViolation(path, "an object with nodes and edges", describe(instance))
        if unknown := sorted(instance.keys() - set(FIELDS)):
            close = difflib.get_close_matches(unknown[0], FIELDS, n=1)
            near = f" (did you mean {close[0]!r}?)" if close else ""
            raise ContractViolation(f"{path}.{unknown[0]}", f"nodes and edges{near}", "an unknown field")
        return self._reader.read(instance, path)

    def _check_inputs(self) -> None:
        """Checks the inputs of the ONNX graph, before the first prediction."""
        width = self._session.get_inputs()[0].shape[-1]
        if self._inputs != ["features", "edges", "sizes"] or (width,) != self.contract.inputs[0].shape:
            raise NotServable(f"the graph takes {self._inputs} with {width} features; the contract has {self.contract.inputs}")
        self._reader = GraphReader(width)

    def _warm(self) -> float:
        """Also predicts the examples, the smallest possible graph among them."""
        seconds = super()._warm()
        try:
            start = time.perf_counter()
            self.predict(self.contract.examples)
        except (ContractViolation, InvalidOutput) as error:
            raise NotServable(f"an example of the contract cannot be predicted: {error}") from error
        return max(seconds, time.perf_counter() - start)
