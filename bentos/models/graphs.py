"""The served side of whole graphs: clients bring graphs of any size, and each gets one answer."""

from __future__ import annotations

import difflib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bentos.models.served_model import BrokenAnswer, NotServable, ServedModel
from headrace.runtime.contract import ContractViolation, Feeds, describe
from headrace.runtime.graph import Part
from headrace.runtime.graph_batch import GraphReader, answer_by_size

FIELDS = ["nodes", "edges"]


class GraphModel(ServedModel):
    """`{"nodes": [features, ...], "edges": [[from, to], ...]}` to a label with probabilities.

    Raises:
        NotServable: the graph takes other inputs.
    """

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        parts = [self._read(instance, f"instances.{i}") for i, instance in enumerate(instances)]
        return self.to_answers(answer_by_size(parts, self.run))

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """Probabilities `(graphs, classes)` of a batch, as `headrace.runtime.graph_batch.batch` makes it."""
        output: NDArray[Any] = self._session.run([self._output], feeds)[0]
        if output.shape != (len(feeds["sizes"]), *self.contract.answer_shape):
            raise BrokenAnswer(f"the graph gave shape {output.shape} for {len(feeds['sizes'])} graphs")
        if not np.isfinite(output).all():
            raise BrokenAnswer("the graph gave NaN or infinity")
        return output

    def _read(self, instance: Any, path: str) -> Part:
        if not isinstance(instance, dict):
            raise ContractViolation(path, "an object with nodes and edges", describe(instance))
        if unknown := sorted(instance.keys() - set(FIELDS)):
            close = difflib.get_close_matches(unknown[0], FIELDS, n=1)
            near = f" (did you mean {close[0]!r}?)" if close else ""
            raise ContractViolation(f"{path}.{unknown[0]}", f"nodes and edges{near}", "an unknown field")
        return self._reader.read(instance, path)

    def _check_inputs(self) -> None:
        """The graph's inputs; called before the first answer."""
        width = self._session.get_inputs()[0].shape[-1]
        if self._inputs != ["features", "edges", "sizes"] or (width,) != self.contract.inputs[0].shape:
            raise NotServable(f"the graph takes {self._inputs} with {width} features; the contract has {self.contract.inputs}")
        self._reader = GraphReader(width)

    def _warm(self) -> float:
        """The smallest graph has to work too, not the sample alone."""
        seconds = super()._warm()
        try:
            start = time.perf_counter()
            self.predict(self.contract.examples)
        except (ContractViolation, BrokenAnswer) as error:
            raise NotServable(f"an example of the contract cannot be predicted: {error}") from error
        return max(seconds, time.perf_counter() - start)
