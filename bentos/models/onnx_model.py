"""A served model: an ONNX graph with its contract and identity, which turns instances into answers."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bentos.models import progress
from bentos.models.served_model import InvalidOutput, NotServable, ServedModel
from headrace.runtime.contract import Contract, Feeds

__all__ = ["InvalidOutput", "NotServable", "OnnxModel", "load", "open_session", "threads_from_environment"]

ROWS_PER_RUN = 1024
"""Rows of one run of the graph: a larger request runs in chunks, so that it does not take more memory."""
MOVED_MODULES = {
    "bentos.model": "bentos.models.onnx_model (its class is OnnxModel)",
    "headrace.contract": "headrace.runtime.contract",
}
"""Modules that custom served classes were documented to import, and where they are now."""


class OnnxModel(ServedModel):
    """One model version. The constructor loads it and predicts the contract's sample.

    Raises:
        NotServable: the graph and the contract disagree.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Loads `model.onnx`, `contract.json` and, if present, `identity.json`; `threads` overrides the contract's."""
        super().__init__(folder)
        self._session = open_session(folder / "model.onnx", threads or self.contract.threads)
        self._inputs = [graph_input.name for graph_input in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name
        self._outputs = [self._output]
        self._answer_shape = self.contract.answer_shape
        self._check_inputs()
        self.sample_seconds = self._warm()
        self.batching = self._read_batching(folder / "serving.json")

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """Returns the graph's first output for all rows of `feeds`, `(rows, *contract.answer_shape)`."""
        rows = len(next(iter(feeds.values())))
        if rows <= ROWS_PER_RUN:
            return self._run_chunk({name: feeds[name] for name in self._inputs}, rows)
        outputs = [
            self._run_chunk(self._chunk(feeds, start), min(ROWS_PER_RUN, rows - start))
            for start in range(0, rows, ROWS_PER_RUN)
        ]
        return np.concatenate(outputs)

    def _read_batching(self, path: Path) -> dict[str, Any] | None:
        """Returns `{"max_rows", "wait_seconds"}` if requests run together; a subclass with its own `predict` never does."""
        if type(self).predict is not ServedModel.predict or not path.is_file():
            return None
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get("batching")
        return found

    def _chunk(self, feeds: Feeds, start: int) -> Feeds:
        progress.report()
        return {name: feeds[name][start : start + ROWS_PER_RUN] for name in self._inputs}

    def _run_chunk(self, chunk: Feeds, rows: int) -> NDArray[Any]:
        output: NDArray[Any] = self._session.run(self._outputs, chunk)[0]
        expected = (rows, *self._answer_shape)
        if output.shape != expected:
            raise InvalidOutput(f"the graph gave shape {output.shape}, the contract has {expected}")
        if not np.isfinite(output).all():
            raise InvalidOutput("the graph gave NaN or infinity")
        return output

    def _check_inputs(self) -> None:
        known = {field.name for field in self.contract.inputs}
        if unknown := [name for name in self._inputs if name not in known]:
            raise NotServable(f"the graph takes {unknown}, the contract has {sorted(known)}")


def load(folder: Path, threads: int | None = None) -> ServedModel:
    """Loads the model in `folder` as the class that its contract names.

    Raises:
        NotServable: the class cannot be imported, or the model's files do not fit together.
    """
    served_by = Contract.read(folder / "contract.json").served_by
    module, _, name = served_by.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        moved = MOVED_MODULES.get(getattr(error, "name", None) or "")
        hint = f"; in {module}, import {moved} instead" if moved else ""
        raise NotServable(f"the class {served_by!r} of the contract cannot be imported: {error}{hint}") from error
    model: ServedModel = found(folder, threads)
    return model


def threads_from_environment() -> int | None:
    """Returns the ONNX Runtime threads that HEADRACE_THREADS sets for this replica, else None."""
    given = os.environ.get("HEADRACE_THREADS")
    return int(given) if given else None


def open_session(graph: Path, threads: int) -> ort.InferenceSession:
    """Opens a graph with the options of a replica."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Replicas share their machine: a thread that spins while it waits takes CPU time from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
