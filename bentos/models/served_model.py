"""A served model: an ONNX graph with its contract and identity, loaded once, from instances to answers."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bentos.scheduling import progress
from headrace.runtime.contract import Contract, ContractViolation, Feeds

ROWS_PER_RUN = 1024
"""A larger batch runs in parts, so that the runtime's memory does not grow with what a client sends."""


class NotServable(Exception):
    """The folder holds no model that can answer by its contract."""


class BrokenAnswer(Exception):
    """The graph gave something that is no answer by its contract: another shape, NaN or infinity."""


class ServedModel:
    """One model version, ready to answer once it is built: building it predicts the contract's sample.

    Raises:
        NotServable: the graph and the contract disagree.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """`folder` holds `model.onnx`, `contract.json` and perhaps `identity.json`; `threads` overrides the contract's."""
        self.contract = Contract.read(folder / "contract.json")
        self.identity = _read_identity(folder / "identity.json")
        self.name = self.contract.model
        self.version = self.identity.get("version", "0")
        self._session = open_session(folder / "model.onnx", threads or self.contract.threads)
        self._inputs = [graph_input.name for graph_input in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name
        self._outputs = [self._output]
        self._answer_shape = self.contract.answer_shape
        self._check_inputs()
        self.sample_seconds = self._warm()
        self.batching = self._read_batching(folder / "serving.json")

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        """Answers in the order of `instances`.

        Raises:
            ContractViolation: an instance breaks the contract; its path starts with `instances.<row>`.
            BrokenAnswer: the graph's output is none.
        """
        return self.to_answers(self.run(self.to_feeds(instances)))

    def to_feeds(self, instances: list[Any]) -> Feeds:
        try:
            return self.contract.to_feeds(instances)
        except OverflowError:  # an integer of hundreds of digits is valid JSON, but no float64
            raise ContractViolation("instances", "numbers that fit 64 bits", "a number too large") from None

    def to_answers(self, outputs: NDArray[Any]) -> list[dict[str, Any]]:
        return self.contract.to_answers(outputs)

    def run(self, feeds: Feeds) -> NDArray[Any]:
        """The graph's first output for all rows of `feeds`: `(rows, *contract.answer_shape)`."""
        rows = len(next(iter(feeds.values())))
        if rows <= ROWS_PER_RUN:
            return self._run_part({name: feeds[name] for name in self._inputs}, rows)
        parts = [
            self._run_part(self._part(feeds, start), min(ROWS_PER_RUN, rows - start)) for start in range(0, rows, ROWS_PER_RUN)
        ]
        return np.concatenate(parts)

    def _read_batching(self, path: Path) -> dict[str, Any] | None:
        """`{"max_rows", "wait_seconds"}` where requests run together; a class with an answer of its own runs them alone."""
        is_plain = type(self).predict is ServedModel.predict
        if not is_plain or not path.is_file():
            return None
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get("batching")
        return found

    def _part(self, feeds: Feeds, start: int) -> Feeds:
        progress.made()
        return {name: feeds[name][start : start + ROWS_PER_RUN] for name in self._inputs}

    def _run_part(self, part: Feeds, rows: int) -> NDArray[Any]:
        output: NDArray[Any] = self._session.run(self._outputs, part)[0]
        expected = (rows, *self._answer_shape)
        if output.shape != expected:
            raise BrokenAnswer(f"the graph gave shape {output.shape}, the contract says {expected}")
        if not np.isfinite(output).all():
            raise BrokenAnswer("the graph gave NaN or infinity")
        return output

    def _check_inputs(self) -> None:
        known = {field.name for field in self.contract.inputs}
        if unknown := [name for name in self._inputs if name not in known]:
            raise NotServable(f"the graph asks for {unknown}, the contract has {sorted(known)}")

    def _warm(self) -> float:
        """Seconds that one prediction of the sample takes, after a first one that sets the runtime up."""
        try:
            self.predict([self.contract.sample])
            start = time.perf_counter()
            self.predict([self.contract.sample])
        except (ContractViolation, BrokenAnswer) as error:
            raise NotServable(f"the contract's own sample cannot be predicted: {error}") from error
        return time.perf_counter() - start


def load(folder: Path, threads: int | None = None) -> ServedModel:
    """The model in `folder`, as the class that its contract names.

    Raises:
        NotServable: the class is not there, or the model's parts disagree.
    """
    served_by = Contract.read(folder / "contract.json").served_by
    module, _, name = served_by.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NotServable(f"the contract names {served_by!r}, which cannot be loaded: {error}") from error
    model: ServedModel = found(folder, threads)
    return model


def threads_given() -> int | None:
    """Of the model's runtime, where this replica was told how many."""
    given = os.environ.get("HEADRACE_THREADS")
    return int(given) if given else None


def open_session(graph: Path, threads: int) -> ort.InferenceSession:
    """A graph as a replica runs it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Replicas share their machine: a thread that waits for work by spinning takes it from its neighbours.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _read_identity(path: Path) -> dict[str, str]:
    return {str(k): str(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()} if path.is_file() else {}
