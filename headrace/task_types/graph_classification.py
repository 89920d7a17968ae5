"""Classification of whole graphs. A row is a graph: JSON of its nodes' features and of its edges, in the columns `nodes` and
`edges`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, near_miss
from headrace.files import write_with
from headrace.models.onnx_export import export_graph, save_graph
from headrace.models.onnx_inference import open_graph
from headrace.models.parity import PARITY_ROWS, check_parity
from headrace.models.schema import Numeric, Schema, Shape
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.graph import Subgraph, undirected
from headrace.runtime.graph_batch import GraphReader, pad_graphs, run_by_size
from headrace.runtime.input_field import InputField
from headrace.runtime.violations import ContractViolation
from headrace.task_types.base import TaskType, class_indices, labels_of

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

NODES, EDGES = "nodes", "edges"
MAX_PADDED_BYTES = 2**31
"""Limit for all training graphs together, padded to the largest."""
CONSTANT = 1e-7
"""A feature whose standard deviation is at most this fraction of its mean is constant, apart from rounding."""
SHOWN = 60
"""Characters of a graph that an error message shows."""


class GraphClassification(TaskType):
    """Predicts one label per graph. The exported network takes any number of graphs, padded to the largest by the service."""

    dynamic: ClassVar[dict[str, dict[int, str]]] = {"features": {1: "nodes"}, "edges": {1: "edges"}}

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        labels = labels_of(train, recipe)
        first = _json(train, NODES)[0]
        width = len(first[0]) if isinstance(first, list) and first and isinstance(first[0], list) else 0
        if not width:
            raise DataError(
                "the first graph has no node with features",
                where=f"column {NODES}",
                hint="write the features of each node as a list of numbers: [[0.5, 1], [2, 0]]",
            )
        features = np.concatenate([part.features for part in graphs_of(train, width)]).astype(np.float64)
        mean, std = features.mean(axis=0), features.std(axis=0)
        std[std <= CONSTANT * np.abs(mean)] = 1.0
        return Schema(
            shape=Shape(features=width, whole=True, outputs=len(labels)),
            numeric=[
                Numeric(name=f"feature_{i}", mean=float(middle), std=float(spread), nullable=False)
                for i, (middle, spread) in enumerate(zip(mean, std, strict=True))
            ],
            labels=labels,
        )

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """`features` `(rows, n, F)`, `edges` `(rows, e, 2)` and `sizes` `(rows, 2)`, padded to the largest graph.

        Raises:
            DataError: all graphs, padded to the largest, would take more than `MAX_PADDED_BYTES`.
        """
        parts = graphs_of(frame, schema.shape.features)
        nodes, edges = (max(len(getattr(part, name)) for part in parts) for name in ("features", "edges"))
        if len(parts) * (4 * nodes * schema.shape.features + 16 * edges) > MAX_PADDED_BYTES:
            raise DataError(
                f"{len(parts):,} graphs, padded to {nodes:,} nodes and {edges // 2:,} edges, take more than "
                f"{MAX_PADDED_BYTES >> 30} GB of memory",
                where=f"column {NODES}",
                hint="leave out the largest graphs, or split them into several",
            )
        return pad_graphs(parts)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build_as
        from headrace.models.graph_classifier import ScaleNodes, SideBySide
        from headrace.models.graph_networks import GraphNetwork
        from headrace.models.served import Classifier

        return Classifier(ScaleNodes(schema), SideBySide(build_as(config, schema.shape, GraphNetwork)))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        width = schema.shape.features
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[
                InputField(name=NODES, dtype="float32", shape=(width,)),
                InputField(name=EDGES, dtype="int64", shape=(2,), minimum=0, nullable=True),
            ],
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample={NODES: _json(sample, NODES)[0], EDGES: _json(sample, EDGES)[0]},
            examples=[{NODES: [[0.0] * width], EDGES: []}],
            served_by="bentos.models.graphs:GraphModel",
            threads=recipe.serve.threads,
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """Returns the rows' graphs, padded to the largest."""
        return pad_graphs(graphs_of(frame, contract.inputs[0].shape[0]))

    def example(self, contract: Contract, folder: Path) -> Feeds:
        return pad_graphs([GraphReader(contract.inputs[0].shape[0]).read(contract.sample, "sample")])

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        import torch

        path = folder / "model.onnx"
        example = {name: torch.from_numpy(array) for name, array in pad_graphs(_random([3, 4], schema.shape.features)).items()}
        graph = export_graph(model, example, self.dynamic)
        write_with(path, lambda beside: save_graph(graph, beside))
        return check_parity(model, path, self.parity_batches(test, schema, recipe, contract), recipe.name)

    def parity_batches(
        self, test: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract
    ) -> Iterator[tuple[Feeds, Feeds]]:
        batches = [self.encode(test.iloc[:rows], schema, recipe) for rows in PARITY_ROWS]
        batches += [pad_graphs(parts) for parts in edge_case_graphs(schema.shape.features)]
        return ((inputs, inputs) for inputs in batches)

    def graph_feeds(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract) -> Feeds:
        return self.encode(frame, schema, recipe)

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        session = open_graph(folder / "model.onnx")
        width = Contract.read(folder / "contract.json").inputs[0].shape[0]
        return run_by_size(graphs_of(frame, width), lambda feeds: session.run(None, feeds)[0])

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        sizes = np.array([len(part.features) for part in graphs_of(frame, schema.shape.features)])
        labels = [str(label) for label in schema.labels]
        return score_classification(class_indices(frame, schema, recipe), outputs, labels, {NODES: sizes})


def graphs_of(frame: pd.DataFrame, features: int) -> list[Subgraph]:
    """Reads the graph of each row, as the service reads a client's.

    Raises:
        DataError: the service would refuse the graph.
    """
    reader, found = GraphReader(features), []
    for nodes, edges in zip(_json(frame, NODES), _json(frame, EDGES), strict=True):
        try:
            found.append(reader.read({NODES: nodes, EDGES: edges}, "graph"))
        except ContractViolation as violation:
            column, _, place = violation.path.removeprefix("graph.").partition(".")
            raise DataError(
                f"expected {violation.expected}, got {violation.got}" + (f", at position {place}" if place else ""),
                where=f"column {column}, {_shown({NODES: nodes, EDGES: edges}[column])}",
                hint="correct the graph, or remove its row",
            ) from None
    return found


def edge_case_graphs(features: int) -> list[list[Subgraph]]:
    """Returns batches of random graphs for the parity check: one node, no edges, isolated nodes beside connected ones, a
    complete graph, and 33 graphs of all sizes together."""
    rng = np.random.default_rng(0)
    full = np.stack(np.meshgrid(np.arange(7), np.arange(7)), axis=-1).reshape(-1, 2)
    isolated = Subgraph(rng.standard_normal((9, features), dtype=np.float32), undirected(np.array([[0, 1], [1, 2]])))
    bare = Subgraph(rng.standard_normal((5, features), dtype=np.float32), undirected(np.zeros((0, 2), np.int64)))
    complete = Subgraph(rng.standard_normal((7, features), dtype=np.float32), undirected(full))
    return [
        _random([1], features),
        [bare],
        [isolated],
        [complete],
        [isolated, bare, complete, *_random(range(1, 31), features)],
    ]


def _random(sizes: Any, features: int) -> list[Subgraph]:
    """Returns a graph of each size, with about two edges per node."""
    rng = np.random.default_rng(1)
    return [
        Subgraph(rng.standard_normal((nodes, features), dtype=np.float32), undirected(rng.integers(0, nodes, (2 * nodes, 2))))
        for nodes in sizes
    ]


def _json(frame: pd.DataFrame, column: str) -> list[Any]:
    """Parses a column of JSON; an empty value gives None.

    Raises:
        DataError: the column does not exist, or a value is not JSON.
    """
    if column not in frame:
        raise DataError(
            f"no column {column!r}; {near_miss(column, map(str, frame.columns))}",
            where="data.columns",
            hint="each graph's nodes and edges have to be in the columns `nodes` and `edges`; data.rename renames columns",
        )
    found = []
    for text in frame[column]:
        try:
            found.append(json.loads(text, parse_constant=_refuse) if isinstance(text, str) and text else None)
        except ValueError as error:
            hint = "write a list, for example [[0, 1], [1, 2]]"
            raise DataError(f"not valid JSON: {error}", where=f"column {column}, {_shown(text)}", hint=hint) from None
    return found


def _shown(value: Any) -> str:
    """Returns the beginning of a value, by which a user finds it: rows have no numbers after the split."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
