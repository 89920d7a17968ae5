"""Whole graphs to classes: a row is a graph, its nodes' features and its edges as JSON in the columns `nodes` and `edges`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, near_miss
from headrace.runtime.contract import Contract, ContractViolation, Feeds, InputField
from headrace.runtime.graph import Part, undirected
from headrace.runtime.graph_batch import GraphReader, answer_by_size, batch
from headrace.task_types.base import Numeric, Schema, Shape, TaskType, class_indices, labels_of

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

NODES, EDGES = "nodes", "edges"
MOST_FILLED = 2**31
"""Bytes of all training graphs filled up to the largest."""
CONSTANT = 1e-7
"""Of the mean: a feature that spreads by no more is the same everywhere, but for rounding."""
PARITY_GRAPHS = (1, 33)
SHOWN = 60
"""Characters of a graph in a message."""


class GraphClassification(TaskType):
    """One label a graph. The served graph takes any number of graphs, filled up to the largest; the service fills them up."""

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
        """`features` `(rows, n, F)`, `edges` `(rows, e, 2)` and `sizes` `(rows, 2)`, filled up to the largest graph.

        Raises:
            DataError: one graph is so large that all, filled up to it, would take more than `MOST_FILLED` bytes.
        """
        parts = graphs_of(frame, schema.shape.features)
        nodes, edges = (max(len(getattr(part, name)) for part in parts) for name in ("features", "edges"))
        if len(parts) * (4 * nodes * schema.shape.features + 16 * edges) > MOST_FILLED:
            raise DataError(
                f"{len(parts):,} graphs, filled up to {nodes:,} nodes and {edges // 2:,} edges, take more than "
                f"{MOST_FILLED >> 30} GB of memory",
                where=f"column {NODES}",
                hint="leave the largest graphs out, or cut them into several",
            )
        return batch(parts)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.graph_classifier import ScaleNodes, SideBySide
        from headrace.models.graph_networks import GraphNetwork
        from headrace.models.served import Classifier
        from headrace.recipe.models import build_as

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
        """The rows' graphs as the served graph takes them, filled up to the largest."""
        return batch(graphs_of(frame, contract.inputs[0].shape[0]))

    def example(self, contract: Contract, folder: Path) -> Feeds:
        return batch([GraphReader(contract.inputs[0].shape[0]).read(contract.sample, "sample")])

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        import torch

        from headrace.files import write_with
        from headrace.models.onnx_export import compare, export_graph, save_graph

        width, path = schema.shape.features, folder / "model.onnx"
        example = {name: torch.from_numpy(array) for name, array in batch(_random([3, 4], width)).items()}
        graph = export_graph(model, example, self.dynamic)
        write_with(path, lambda beside: save_graph(graph, beside))
        batches = [self.encode(test.iloc[:rows], schema, recipe) for rows in PARITY_GRAPHS]
        batches += [batch(parts) for parts in whatever_may_come(width)]
        return compare(model, path, ((one, one) for one in batches), recipe)

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        from headrace.models.onnx_export import open_graph

        session = open_graph(folder / "model.onnx")
        width = Contract.read(folder / "contract.json").inputs[0].shape[0]
        return answer_by_size(graphs_of(frame, width), lambda feeds: session.run(None, feeds)[0])

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        sizes = np.array([len(part.features) for part in graphs_of(frame, schema.shape.features)])
        labels = [str(label) for label in schema.labels]
        return score_classification(class_indices(frame, schema, recipe), outputs, labels, {NODES: sizes})


def graphs_of(frame: pd.DataFrame, features: int) -> list[Part]:
    """The graph of each row, read as the service reads a client's.

    Raises:
        DataError: it is none the service would take.
    """
    reader, found = GraphReader(features), []
    for nodes, edges in zip(_json(frame, NODES), _json(frame, EDGES), strict=True):
        try:
            found.append(reader.read({NODES: nodes, EDGES: edges}, "graph"))
        except ContractViolation as violation:
            column, _, place = violation.path.removeprefix("graph.").partition(".")
            raise DataError(
                f"expected {violation.expected}, got {violation.got}" + (f", at place {place}" if place else ""),
                where=f"column {column}, {_shown({NODES: nodes, EDGES: edges}[column])}",
                hint="correct the graph, or take its row out",
            ) from None
    return found


def whatever_may_come(features: int) -> list[list[Part]]:
    """Batches of random graphs to hold the exported one against torch on: one node, no edge, nodes that stand alone beside
    others, every pair connected, and 33 graphs of all sizes together."""
    rng = np.random.default_rng(0)
    full = np.stack(np.meshgrid(np.arange(7), np.arange(7)), axis=-1).reshape(-1, 2)
    lonely = Part(rng.standard_normal((9, features), dtype=np.float32), undirected(np.array([[0, 1], [1, 2]])))
    bare = Part(rng.standard_normal((5, features), dtype=np.float32), undirected(np.zeros((0, 2), np.int64)))
    complete = Part(rng.standard_normal((7, features), dtype=np.float32), undirected(full))
    return [_random([1], features), [bare], [lonely], [complete], [lonely, bare, complete, *_random(range(1, 31), features)]]


def _random(sizes: Any, features: int) -> list[Part]:
    """A graph of each size, with about two edges a node."""
    rng = np.random.default_rng(1)
    return [
        Part(rng.standard_normal((nodes, features), dtype=np.float32), undirected(rng.integers(0, nodes, (2 * nodes, 2))))
        for nodes in sizes
    ]


def _json(frame: pd.DataFrame, column: str) -> list[Any]:
    """The values of a column of JSON; nothing where a row has nothing.

    Raises:
        DataError: no such column, or no JSON.
    """
    if column not in frame:
        raise DataError(
            f"no column {column!r}; {near_miss(column, map(str, frame.columns))}",
            where="data.columns",
            hint="bring each graph's nodes and edges in the columns `nodes` and `edges`; data.rename gives columns other names",
        )
    found = []
    for text in frame[column]:
        try:
            found.append(json.loads(text, parse_constant=_refuse) if isinstance(text, str) and text else None)
        except ValueError as error:
            hint = "write a list, such as [[0, 1], [1, 2]]"
            raise DataError(f"no JSON: {error}", where=f"column {column}, {_shown(text)}", hint=hint) from None
    return found


def _shown(value: Any) -> str:
    """The beginning of a value, to find it by: rows have no numbers once they are divided."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")
