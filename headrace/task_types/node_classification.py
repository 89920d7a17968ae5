"""Classification of the nodes of one graph. The network sees all nodes and edges, but only the labels of training nodes.

The graph is stored in `schema.extra` and served as `graph.npz` beside the exported network.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.files import write_with
from headrace.models.onnx_export import export_graph, save_graph
from headrace.models.onnx_inference import open_graph
from headrace.models.parity import PARITY_ROWS, check_answers
from headrace.models.schema import Schema, Shape
from headrace.recipe.data import EDGES
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.graph import Graph, Subgraph, make_graph, undirected
from headrace.runtime.input_field import InputField
from headrace.runtime.node_queries import HOPS, NodePredictor
from headrace.task_types.base import TaskType, as_label, class_indices, labels_of
from headrace.task_types.numeric_targets import finite
from headrace.task_types.table_columns import numeric_column

if TYPE_CHECKING:
    import pandas as pd

    from headrace.data.splits import Splits
    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

GRAPH = "graph.npz"
MAX_PARITY_NODES = 1000
"""Test nodes on which the exported network is compared with torch."""


class NodeClassification(TaskType):
    """Predicts one label per node. The exported network takes the features and edges of any nodes; the service selects those in
    the neighbourhood of the requested node."""

    dynamic: ClassVar[dict[str, dict[int, str]]] = {"edges": {0: "edges"}}

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        return self._learn(train, train, recipe)

    def learn(self, splits: Splits, recipe: Recipe) -> Schema:
        import pandas as pd

        nodes = pd.concat([splits.train, splits.validation, splits.test, splits.rest], ignore_index=True)
        return self._learn(splits.train, nodes.drop(columns=recipe.data.target), recipe)

    def _learn(self, train: pd.DataFrame, nodes: pd.DataFrame, recipe: Recipe) -> Schema:
        """Learns from all `nodes`; labels are read from `train` only."""
        labels = labels_of(train, recipe)
        columns, is_packed = _columns(nodes, recipe)
        if empty := [name for name in columns if nodes[name].isna().all()]:
            hint = "leave out the column (data.columns), or fill it"
            raise DataError("no node has a value here", where=f"column {empty[0]}", hint=hint)
        values = _features(nodes, recipe)
        width = max((int(index[-1]) + 1 for index, _ in values if len(index)), default=0) if is_packed else len(columns)
        if not width:
            raise DataError("no node has a feature", where=f"column {columns[0]}", hint="add features of the nodes")
        graph = make_graph(_ids(nodes, recipe), width, values, _edges(nodes, recipe))
        return Schema(
            shape=Shape(features=width, outputs=len(labels)),
            numeric=[] if is_packed else [numeric_column(nodes, name) for name in columns],
            labels=labels,
            extra={"graph": base64.b64encode(graph.to_bytes()).decode()},
        )

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns `place` `(rows,)` int64: the index of each row's node in the graph."""
        place = graph_of(schema).index
        return {"place": np.array([place[node] for node in _ids(frame, recipe)], dtype=np.int64)}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build_as
        from headrace.models.graph_networks import GraphNetwork
        from headrace.models.node_classifier import NodeClassifier, RowShares, ScaleColumns

        network = build_as(config, schema.shape, GraphNetwork)
        return NodeClassifier(ScaleColumns(schema) if schema.numeric else RowShares(), network, graph_of(schema))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        node = _ids(sample, recipe)[0]
        graph, width = graph_of(schema), schema.shape.features
        around = graph.subgraph(graph.around(np.array([graph.index[node]]), 1))
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
        """Returns `node` `(rows,)`: the names that clients use."""
        return {"node": np.array(_ids(frame, recipe), dtype=object)}

    def example(self, contract: Contract, folder: Path) -> Feeds:
        graph = Graph.from_bytes((folder / GRAPH).read_bytes())
        part = graph.subgraph(graph.around(np.array([graph.index[contract.sample["node"]]]), 1))
        return {"features": part.features, "edges": part.edges}

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        import onnx
        import torch

        from headrace.models.node_classifier import NodeClassifier, NodeProbabilities

        assert isinstance(model, NodeClassifier)
        graph, answers = graph_of(schema), NodeProbabilities(model).eval()
        example = {"features": torch.rand(3, graph.features), "edges": torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1]])}
        exported = export_graph(answers, example, self.dynamic)
        # The weight of the farthest node depends on its degree, which takes one hop more.
        onnx.helper.set_model_props(exported, {HOPS: str(model.network.hops + 1)})
        write_with(folder / "model.onnx", lambda beside: save_graph(exported, beside))
        write_with(folder / GRAPH, lambda beside: beside.write_bytes(graph.to_bytes()))
        nodes = _open_answers(folder, contract)
        places = self.encode(test.iloc[:MAX_PARITY_NODES], schema, recipe)["place"]
        with torch.inference_mode():
            pairs = [
                (answers(torch.from_numpy(part.features), torch.from_numpy(part.edges)).numpy(), nodes.run(part))
                for part in (_random_part(1, 0, graph.features), _random_part(33, 60, graph.features))
            ]
            expected = model(torch.from_numpy(places)).numpy()
        # A few nodes reach only part of the stored graph; many reach nearly all of it.
        pairs += [(expected[:rows], nodes.in_batches(places[:rows])) for rows in PARITY_ROWS] + [
            (expected, nodes.known(places))
        ]
        return check_answers(pairs, recipe.name)

    def graph_feeds(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract) -> None:
        return None

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """Answers as the service does: for an unknown node, from its features and those of its neighbours that are known."""
        nodes = _open_answers(folder, Contract.read(folder / "contract.json"))
        place, width = nodes.graph.index, nodes.graph.features
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
    """Returns the graph that `learn` stored in the schema."""
    return _unpacked(schema.extra["graph"])


@lru_cache(maxsize=1)
def _unpacked(packed: str) -> Graph:
    return Graph.from_bytes(base64.b64decode(packed))


def _open_answers(folder: Path, contract: Contract) -> NodePredictor:
    """Opens the exported network in `folder` and the graph beside it."""
    session = open_graph(folder / "model.onnx")
    hops = int(session.get_modelmeta().custom_metadata_map[HOPS])
    return NodePredictor(
        Graph.from_bytes((folder / GRAPH).read_bytes()),
        hops,
        lambda part: session.run(None, {"features": part.features, "edges": part.edges})[0],
        contract,
    )


def _random_part(nodes: int, edges: int, width: int) -> Subgraph:
    rng = np.random.default_rng(0)
    return Subgraph(rng.random((nodes, width), dtype=np.float32), undirected(rng.integers(0, nodes, (edges, 2))))


def _ids(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    assert recipe.data.graph is not None
    return [str(as_label(value)) for value in frame[recipe.data.graph.node]]


def _neighbours(frame: pd.DataFrame) -> list[list[str]]:
    return [str(text).split() if isinstance(text, str) else [] for text in frame[EDGES]]


def _edges(nodes: pd.DataFrame, recipe: Recipe) -> NDArray[np.int64]:
    """Returns the indices of the nodes at both ends, `(edges, 2)`; each edge appears once or twice.

    Raises:
        DataError: an edge leads to a node that is in no row.
    """
    place = {node: i for i, node in enumerate(_ids(nodes, recipe))}
    pairs: list[tuple[int, int]] = []
    for i, ends in enumerate(_neighbours(nodes)):
        for end in ends:
            if end not in place:
                raise DataError(
                    f"an edge leads from node {list(place)[i]!r} to {end!r}, which is in no row",
                    where=f"column {EDGES}",
                    hint="add a row for that node, or remove the edge",
                )
            pairs.append((i, place[end]))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _columns(frame: pd.DataFrame, recipe: Recipe) -> tuple[list[str], bool]:
    """Returns the feature columns, and whether they are packed: one text column with the positions of the ones.

    Raises:
        DataError: the table has no column, or a text column beside others.
    """
    from pandas.api.types import is_numeric_dtype

    columns = recipe.data.features(map(str, frame.columns))
    texts = [name for name in columns if not is_numeric_dtype(frame[name])]
    if not columns or (texts and len(columns) > 1):
        raise DataError(
            f"column {texts[0]!r} contains text, but a node's features are numbers" if columns else "nodes have no features",
            where="data.columns",
            hint="keep columns of numbers, or pack columns of 0 and 1 into one (data.graph.pack)",
        )
    return columns, bool(texts)


def _features(frame: pd.DataFrame, recipe: Recipe) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Returns, for each node, the indices of its non-zero features, ascending, and their values; NaN for missing ones.

    Raises:
        DataError: a value is not a position, or not a finite number.
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
            f"{wrong[0]!r} is not the position of a feature",
            where=f"column {column}",
            hint="write the positions of a node's features as whole numbers from 0, separated by spaces",
        )
    return np.unique(np.array(words, dtype=np.int32))


def _sent(row: NDArray[np.float32], is_packed: bool) -> Any:
    """Returns a node's features as a client would send them."""
    return {"present": np.flatnonzero(row).tolist()} if is_packed else [float(value) for value in np.nan_to_num(row)]
