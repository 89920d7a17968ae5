"""Nodes of one graph to classes. The network sees all nodes and all edges, and the labels of the training nodes alone.

The graph is part of what is prepared and of what is served: in `schema.extra`, then as `graph.npz` beside the exported network.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.recipe.data import EDGES
from headrace.runtime.contract import Contract, Feeds, InputField
from headrace.runtime.graph import Graph, Part, make_graph, undirected
from headrace.runtime.node_queries import HOPS, NodeAnswers
from headrace.task_types.base import Schema, Shape, TaskType, class_indices, labels_of, plain
from headrace.task_types.table_columns import finite, numeric_column

if TYPE_CHECKING:
    import pandas as pd

    from headrace.data.splits import Splits
    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

GRAPH = "graph.npz"
MOST_COMPARED = 1000
"""Test nodes on which the exported network is held against torch."""


class NodeClassification(TaskType):
    """One label a node. The served graph takes the features and edges of any nodes; the service finds those that matter."""

    dynamic: ClassVar[dict[str, dict[int, str]]] = {"edges": {0: "edges"}}

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        return self._learn(train, train, recipe)

    def learn(self, splits: Splits, recipe: Recipe) -> Schema:
        import pandas as pd

        nodes = pd.concat([splits.train, splits.validation, splits.test, splits.rest], ignore_index=True)
        return self._learn(splits.train, nodes.drop(columns=recipe.data.target), recipe)

    def _learn(self, train: pd.DataFrame, nodes: pd.DataFrame, recipe: Recipe) -> Schema:
        """`nodes` are all that there are; labels are read from `train` alone."""
        labels = labels_of(train, recipe)
        columns, is_packed = _columns(nodes, recipe)
        if empty := [name for name in columns if nodes[name].isna().all()]:
            hint = "leave the column out (data.columns), or fill it"
            raise DataError("no node has a value here", where=f"column {empty[0]}", hint=hint)
        values = _features(nodes, recipe)
        width = max((int(index[-1]) + 1 for index, _ in values if len(index)), default=0) if is_packed else len(columns)
        if not width:
            raise DataError("no node has a feature", where=f"column {columns[0]}", hint="bring features of the nodes")
        graph = make_graph(_ids(nodes, recipe), width, values, _edges(nodes, recipe))
        return Schema(
            shape=Shape(features=width, outputs=len(labels)),
            numeric=[] if is_packed else [numeric_column(nodes, name) for name in columns],
            labels=labels,
            extra={"graph": base64.b64encode(graph.to_bytes()).decode()},
        )

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """`place` `(rows,)` int64: which nodes of the graph these are."""
        place = graph_of(schema).place
        return {"place": np.array([place[node] for node in _ids(frame, recipe)], dtype=np.int64)}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.graph_networks import GraphNetwork
        from headrace.models.node_classifier import NodeClassifier, RowShares, ScaleColumns
        from headrace.recipe.models import build_as

        network = build_as(config, schema.shape, GraphNetwork)
        return NodeClassifier(ScaleColumns(schema) if schema.numeric else RowShares(), network, graph_of(schema))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        node = _ids(sample, recipe)[0]
        graph, width = graph_of(schema), schema.shape.features
        around = graph.part(graph.around(np.array([graph.place[node]]), 1))
        rows = [_sent(row, not schema.numeric) for row in around.features[:3]]
        one_way = [edge for edge in around.edges.tolist() if edge[0] < edge[1] < len(rows)]
        low, high = (None, None) if schema.numeric else (0, 1)
        features = {"dtype": "float32", "shape": (width,), "minimum": low, "maximum": high, "nullable": True}
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[
                InputField(name="node", dtype="string", nullable=True),
                InputField(name="features", **features),
                InputField(name="neighbours", dtype="string", nullable=True),
                InputField(name="nodes", **features),
                InputField(name="edges", dtype="int64", shape=(2,), minimum=0, nullable=True),
            ],
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample={"node": node},
            examples=[{"features": rows[0], "neighbours": [node]}, {"nodes": rows, "edges": one_way}],
            served_by="bentos.models.nodes:NodeModel",
            threads=recipe.serve.threads,
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """`node` `(rows,)`, as clients name them."""
        return {"node": np.array(_ids(frame, recipe), dtype=object)}

    def example(self, contract: Contract, folder: Path) -> Feeds:
        graph = Graph.from_bytes((folder / GRAPH).read_bytes())
        part = graph.part(graph.around(np.array([graph.place[contract.sample["node"]]]), 1))
        return {"features": part.features, "edges": part.edges}

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        import onnx
        import torch

        from headrace.files import write_with
        from headrace.models.node_classifier import NodeClassifier, NodeProbabilities
        from headrace.models.onnx_export import PARITY_ROWS, agreement, export_graph, save_graph

        assert isinstance(model, NodeClassifier)
        graph, answers = graph_of(schema), NodeProbabilities(model).eval()
        example = {"features": torch.rand(3, graph.features), "edges": torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1]])}
        exported = export_graph(answers, example, self.dynamic)
        # The degree of the farthest node that is seen decides how loudly it is heard: one edge more.
        onnx.helper.set_model_props(exported, {HOPS: str(model.network.hops + 1)})
        write_with(folder / "model.onnx", lambda beside: save_graph(exported, beside))
        write_with(folder / GRAPH, lambda beside: beside.write_bytes(graph.to_bytes()))
        nodes = _opened(folder, contract)
        places = self.encode(test.iloc[:MOST_COMPARED], schema, recipe)["place"]
        with torch.inference_mode():
            pairs = [
                (answers(torch.from_numpy(part.features), torch.from_numpy(part.edges)).numpy(), nodes.run(part))
                for part in (_random_part(1, 0, graph.features), _random_part(33, 60, graph.features))
            ]
            wanted = model(torch.from_numpy(places)).numpy()
        # Few nodes see but a part of the stored graph; many see nearly all of it.
        pairs += [(wanted[:rows], nodes.in_parts(places[:rows])) for rows in PARITY_ROWS] + [(wanted, nodes.known(places))]
        return agreement(pairs, recipe.name)

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """As the service answers: of a node that it does not know, from its features and those neighbours that it knows."""
        nodes = _opened(folder, Contract.read(folder / "contract.json"))
        place, width = nodes.graph.place, nodes.graph.features
        ids = _ids(frame, recipe)
        is_known = np.array([node in place for node in ids])
        outputs = np.zeros((len(frame), len(nodes.contract.labels or ())), np.float32)
        outputs[is_known] = nodes.known(np.array([place[node] for node in ids if node in place], dtype=np.int64))
        new = frame[~is_known]
        for at, (index, values), ends in zip(np.flatnonzero(~is_known), _features(new, recipe), _neighbours(new), strict=True):
            features = np.zeros(width, np.float32)
            features[index[index < width]] = values[index < width]
            outputs[at] = nodes.beside(features, np.unique([place[end] for end in ends if end in place]).astype(np.int64))[0]
        return outputs

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        degrees = graph_of(schema).degrees[self.encode(frame, schema, recipe)["place"]]
        labels = [str(label) for label in schema.labels]
        return score_classification(class_indices(frame, schema, recipe), outputs, labels, {"neighbours": degrees})


def graph_of(schema: Schema) -> Graph:
    """The graph that `learn` put into the schema."""
    return _unpacked(schema.extra["graph"])


@lru_cache(maxsize=1)
def _unpacked(packed: str) -> Graph:
    return Graph.from_bytes(base64.b64decode(packed))


def _opened(folder: Path, contract: Contract) -> NodeAnswers:
    """The exported network in `folder` over the graph beside it."""
    from headrace.models.onnx_export import open_graph

    session = open_graph(folder / "model.onnx")
    hops = int(session.get_modelmeta().custom_metadata_map[HOPS])
    return NodeAnswers(
        Graph.from_bytes((folder / GRAPH).read_bytes()),
        hops,
        lambda part: session.run(None, {"features": part.features, "edges": part.edges})[0],
        contract,
    )


def _random_part(nodes: int, edges: int, width: int) -> Part:
    rng = np.random.default_rng(0)
    return Part(rng.random((nodes, width), dtype=np.float32), undirected(rng.integers(0, nodes, (edges, 2))))


def _ids(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    assert recipe.data.graph is not None
    return [str(plain(value)) for value in frame[recipe.data.graph.node]]


def _neighbours(frame: pd.DataFrame) -> list[list[str]]:
    return [str(text).split() if isinstance(text, str) else [] for text in frame[EDGES]]


def _edges(nodes: pd.DataFrame, recipe: Recipe) -> NDArray[np.int64]:
    """`(edges, 2)` places of the nodes at both ends, each edge once or twice.

    Raises:
        DataError: an edge leads to a node that no row has.
    """
    place = {node: i for i, node in enumerate(_ids(nodes, recipe))}
    pairs: list[tuple[int, int]] = []
    for i, ends in enumerate(_neighbours(nodes)):
        for end in ends:
            if end not in place:
                raise DataError(
                    f"an edge leads from node {list(place)[i]!r} to {end!r}, which no row has",
                    where=f"column {EDGES}",
                    hint="bring a row for that node, or take the edge out",
                )
            pairs.append((i, place[end]))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _columns(frame: pd.DataFrame, recipe: Recipe) -> tuple[list[str], bool]:
    """The columns of features, and whether they are one text with the positions of the ones.

    Raises:
        DataError: no column, or a text beside others.
    """
    from pandas.api.types import is_numeric_dtype

    columns = recipe.data.features(map(str, frame.columns))
    texts = [name for name in columns if not is_numeric_dtype(frame[name])]
    if not columns or (texts and len(columns) > 1):
        raise DataError(
            f"column {texts[0]!r} holds text, and a node's features are numbers" if columns else "the nodes have no features",
            where="data.columns",
            hint="keep columns of numbers, or pack columns of 0 and 1 into one (data.graph.pack)",
        )
    return columns, bool(texts)


def _features(frame: pd.DataFrame, recipe: Recipe) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Of each node: which features are not zero, ascending, and their values; NaN for missing.

    Raises:
        DataError: a value is no position, or no finite number.
    """
    columns, is_packed = _columns(frame, recipe)
    if is_packed:
        found = [_positions(text, columns[0]) for text in frame[columns[0]]]
        return [(index, np.ones(len(index), np.float32)) for index in found]
    matrix = np.stack([finite(frame, name) for name in columns], axis=1).astype(np.float32)
    rows = [np.flatnonzero(row).astype(np.int32) for row in matrix]
    return [(index, row[index]) for index, row in zip(rows, matrix, strict=True)]


def _positions(text: Any, column: str) -> NDArray[np.int32]:
    words = text.split() if isinstance(text, str) else []
    if wrong := [word for word in words if not (word.isascii() and word.isdecimal() and len(word) < 10)]:
        raise DataError(
            f"{wrong[0]!r} is no position of a feature",
            where=f"column {column}",
            hint="write the positions of a node's features as whole numbers from 0, with spaces between",
        )
    return np.unique(np.array(words, dtype=np.int32))


def _sent(row: NDArray[np.float32], is_packed: bool) -> Any:
    """A node's features as a client would send them."""
    return {"present": np.flatnonzero(row).tolist()} if is_packed else [float(value) for value in np.nan_to_num(row)]
