"""Graph classification: rings against trees, from a tiny recipe's data to the service; and every graph that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch

from bentos.app import PredictionApp
from bentos.models.graphs import GraphModel
from bentos.models.onnx_model import NotServable, load
from headrace.errors import DataError
from headrace.files import read_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release.decision import judge
from headrace.runtime import graph_batch
from headrace.runtime.graph import Subgraph
from headrace.runtime.graph_batch import GraphReader, pad_graphs, run_by_size
from headrace.runtime.http import Refused
from headrace.runtime.violations import ContractViolation
from headrace.task_types.graph_classification import edge_case_graphs, graphs_of
from headrace.task_types.lookup import task_type_of
from headrace.tracking.registry import Version
from tests.asgi import predict_body
from tests.bento_projects import make_model, make_recipe, run_stages
from tests.bentos.protocols.explain_requests import ask
from tests.exhaustive import exhaustive
from tests.projects import make_project

TASK = "graph-classification"
RECIPE = """
name: shapes
task: graph-classification
data:
  source: shapes.jsonl
  target: shape
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: gcn, hidden: [16, 16], dropout: 0.0, pooling: max}
train: {epochs: 25, batch_size: 16, optimizer: adam, learning_rate: 0.02, schedule: constant, device: cpu}
gate: {require: {accuracy: ">= 0.9"}, beat_champion: {metric: accuracy}}
serve: {}
"""
MODELS: list[dict[str, Any]] = [
    {"name": "gcn", "hidden": [4, 3], "pooling": "mean"},
    {"name": "gat", "hidden": [3], "heads": 2, "pooling": "attention"},
    {"name": "appnp", "hidden": [4], "steps": 2, "pooling": "max"},
]


pytestmark = pytest.mark.usefixtures("one_thread")


def shapes(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    """Rings, and stars of as many nodes; a node's features are noise and how many neighbours it has."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(rows):
        size = int(rng.integers(4, 9))
        ring = [[i, (i + 1) % size] for i in range(size)]
        star = [[0, i] for i in range(1, size)]
        edges = ring if row % 2 else star
        degree = np.bincount(np.array(edges).ravel(), minlength=size)
        nodes = [[round(float(rng.normal()), 3), int(count)] for count in degree]
        found.append({"nodes": nodes, "edges": edges, "shape": "ring" if row % 2 else "star"})
    return pd.DataFrame(found)


def landed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as it lands."""
    return frame.assign(nodes=frame["nodes"].map(json.dumps), edges=frame["edges"].map(json.dumps))


def recipe_of(model: dict[str, Any] | None = None) -> Recipe:
    return make_recipe(TASK, model=model or MODELS[0], target="shape")


def test_the_schema_knows_the_features_of_all_training_nodes() -> None:
    frame = shapes()
    schema = task_type_of(TASK).fit(landed(frame), recipe_of())
    nodes = np.array([node for graph in frame["nodes"] for node in graph])
    np.testing.assert_allclose([column.mean for column in schema.numeric], nodes.mean(axis=0))
    np.testing.assert_allclose([column.std for column in schema.numeric], nodes.std(axis=0))
    assert schema.labels == ["ring", "star"] and schema.shape.features == 2
    constant = landed(frame).assign(nodes="[[0, 0.1]]", edges="[]")
    assert [column.std for column in task_type_of(TASK).fit(constant, recipe_of()).numeric] == [1.0, 1.0]


def test_edges_count_both_ways_once_and_no_node_is_its_own_neighbour() -> None:
    frame = landed(pd.DataFrame([{"nodes": [[1], [2], [3]], "edges": [[0, 1], [1, 0], [0, 1], [2, 2]]}]))
    (part,) = graphs_of(frame, 1)
    assert part.edges.tolist() == [[0, 1], [1, 0]]


def test_a_graph_may_have_no_edges_however_that_is_written() -> None:
    for edges in ("[]", "", None, np.nan):
        (part,) = graphs_of(pd.DataFrame({"nodes": ["[[1.5]]"], "edges": [edges]}), 1)
        assert (part.features.tolist(), part.edges.shape) == ([[1.5]], (0, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"edges": "[[0, 9]]"},
            r"column edges, \[\[0, 9\]\]: expected two node indices from 0 to \d, got list \[0, 9\], at position 0",
        ),
        ({"edges": "[[0, 1"}, "not valid JSON"),
        ({"nodes": "[[1, 2], [NaN, 1]]"}, "NaN is not a number"),
        ({"nodes": "[[1, 2], [1, null]]"}, "at position 1"),
        ({"nodes": "[]"}, "a list with the features of each node"),
        ({"nodes": None}, "a list with the features of each node"),
        ({"nodes": "[[1, 2], [3]]", "edges": "[]"}, r"in shape \[2\].*got a list of 1, at position 1"),
    ],
)
def test_an_invalid_graph_is_named_by_its_beginning(change: dict[str, Any], said: str) -> None:
    frame = landed(shapes())
    for column, value in change.items():
        frame.loc[3, column] = value
    with pytest.raises(DataError, match=said) as caught:
        task_type_of(TASK).fit(frame, recipe_of())
    assert caught.value.hint


def test_a_table_without_graphs_is_refused() -> None:
    with pytest.raises(DataError, match="no column 'edges'; did you mean 'edge'"):
        task_type_of(TASK).fit(landed(shapes()).rename(columns={"edges": "edge"}), recipe_of())
    with pytest.raises(DataError, match="no node with features"):
        task_type_of(TASK).fit(landed(shapes()).assign(nodes="[[]]"), recipe_of())


def test_graphs_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task_type, frame = task_type_of(TASK), landed(shapes())
    schema = task_type.fit(frame, recipe_of())
    monkeypatch.setattr("headrace.task_types.graph_classification.MAX_PADDED_BYTES", 1000)
    with pytest.raises(DataError, match="120 graphs, padded to 8 nodes and 8 edges"):
        task_type.encode(frame, schema, recipe_of())


@pytest.mark.parametrize(
    "model", [MODELS[0], *map(exhaustive, MODELS[1:])], ids=lambda model: f"{model['name']}, {model['pooling']}"
)
def test_a_graph_gets_the_same_answer_alone_in_a_batch_exported_and_served(model: dict[str, Any], tmp_path: Path) -> None:
    recipe, frame = recipe_of(model), landed(shapes())
    task_type = task_type_of(TASK)
    schema = task_type.fit(frame, recipe)
    network = make_model(recipe, schema)
    contract = task_type.contract(schema, recipe, frame.iloc[[1]])
    contract.write(tmp_path / "contract.json")
    assert task_type.export(network, schema, recipe, contract, frame, tmp_path)["largest_relative_difference"] < 1e-5
    parts = [part for parts in edge_case_graphs(2) for part in parts] + graphs_of(frame.iloc[:9], 2)
    with torch.inference_mode():
        alone = np.concatenate([network(*map(torch.from_numpy, pad_graphs([part]).values())).numpy() for part in parts])
        together = network(*map(torch.from_numpy, pad_graphs(parts).values())).numpy()
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(alone[:, 0]) > 1e-3  # it tells graphs apart
    served = load(tmp_path)
    asked = [{"nodes": part.features.tolist(), "edges": part.edges.tolist()} for part in parts]
    said = served.predict(json.loads(json.dumps(asked)))
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in said], alone, atol=1e-5)
    np.testing.assert_allclose(task_type.answers(tmp_path, frame.iloc[:9], recipe), alone[-9:], atol=1e-5)


def test_the_order_of_nodes_and_edges_changes_nothing(tmp_path: Path) -> None:
    recipe, frame = recipe_of(MODELS[1]), landed(shapes())
    schema = task_type_of(TASK).fit(frame, recipe)
    network = make_model(recipe, schema)
    part = edge_case_graphs(2)[-1][-1]
    order = np.random.default_rng(2).permutation(len(part.features))
    place = np.argsort(order)
    other = Subgraph(part.features[order], place[part.edges][::-1])
    with torch.inference_mode():
        first, second = (network(*map(torch.from_numpy, pad_graphs([one]).values())) for one in (part, other))
    torch.testing.assert_close(first, second)


def test_graphs_of_like_size_are_answered_together_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_batch, "CELLS_PER_RUN", 20)
    parts = [Subgraph(np.full((n, 1), n, np.float32), np.zeros((0, 2), np.int64)) for n in (3, 50, 1, 9, 2, 10)]
    seen: list[list[int]] = []

    def run(feeds: dict[str, Any]) -> Any:
        seen.append(feeds["sizes"][:, 0].tolist())
        return feeds["features"].max(axis=(1, 2))[:, None]

    assert run_by_size(parts, run)[:, 0].tolist() == [3, 50, 1, 9, 2, 10]
    assert seen == [[1, 2, 3], [9, 10], [50]]


@pytest.mark.parametrize(
    ("graph", "path", "said"),
    [
        ({"nodes": []}, "nodes", "a list with the features of each node"),
        ({"edges": [[0, 1]]}, "nodes", "a list with the features of each node, got null"),
        ({"nodes": {"0": [1, 2]}}, "nodes", "a list"),
        ({"nodes": [[1, 2]] * 5}, "nodes", "at most 4 nodes, got 5 nodes"),
        ({"nodes": [[1, 2], [1]]}, "nodes.1", r"in shape \[2\]"),
        ({"nodes": [[1, 2], [1, "x"]]}, "nodes.1", "a number"),
        ({"nodes": [[1, float("nan")]]}, "nodes.0", "a finite number"),
        ({"nodes": [[1, 1e39]]}, "nodes.0", "a number that fits float32"),
        ({"nodes": [[1, 10**400]]}, "nodes.0", "a number"),
        ({"nodes": [{"present": [2]}]}, "nodes.0.present.0", "a position from 0 to 1"),
        ({"nodes": [[1, 2]], "edges": [[0, 1]]}, "edges.0", "two node indices from 0 to 0"),
        ({"nodes": [[1, 2]] * 2, "edges": [[0, 1], [0, 1.0]]}, "edges.1", "two node indices from 0 to 1"),
        ({"nodes": [[1, 2]] * 2, "edges": [[0, 1, 1]]}, "edges.0", "two node indices"),
        ({"nodes": [[1, 2]] * 2, "edges": [[0, -1]]}, "edges.0", "two node indices"),
        ({"nodes": [[1, 2]] * 2, "edges": "0 1"}, "edges", "a list of pairs"),
        ({"nodes": [[1, 2]] * 2, "edges": [[0, 1]] * 7}, "edges", "at most 6 edges, got 7 edges"),
    ],
)
def test_a_graph_that_is_none_is_refused_with_its_path(
    graph: dict[str, Any], path: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_batch, "MAX_EDGES", 6)
    with pytest.raises(ContractViolation, match=said) as caught:
        GraphReader(2, most_cells=8).read(graph, "instances.0")
    assert caught.value.path == f"instances.0.{path}"


# A recipe through all stages.


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("shapes") / "clone")
    shapes().to_json(made.root / "shapes.jsonl", orient="records", lines=True)
    (made.recipes / "shapes.yaml").write_text(RECIPE)
    run_stages(made, "shapes")
    return made


@pytest.fixture
def folder(project: Project) -> Path:
    return project.artifacts("shapes") / "export"


def test_the_tiny_recipe_passes_its_gate(project: Project) -> None:
    recipe = load_recipe("shapes", project)
    artifacts = project.artifacts("shapes")
    assert read_json(artifacts / "evaluation" / "metrics.json")["accuracy"] >= 0.9
    assert judge(recipe, Version(recipe.name, "1", "run", artifacts / "export", {}), None, project).passed
    slices = read_json(artifacts / "evaluation" / "evaluation.json")["slices"]
    assert {one["column"] for one in slices} == {"nodes"} and 20 < sum(one["rows"] for one in slices) <= 36


def test_an_explanation_says_how_much_a_graph_loses_with_each_node(folder: Path) -> None:
    """Against the answers for the graphs that are left, each drawn by hand."""
    app = PredictionApp()
    app.model = load(folder)
    star = {"nodes": [[0.3, 4], *[[0.1 * i, 1] for i in range(4)]], "edges": [[0, 1], [2, 0], [0, 3], [4, 0]]}
    found = ask(app, instance=star, target="star")
    assert (found["method"], found["evaluations"], found["base_value"]) == ("leave one node out", 6, None)
    left = [{"nodes": star["nodes"][1:], "edges": []}]
    for leaf in range(1, 5):
        left.append({"nodes": [*star["nodes"][:leaf], *star["nodes"][leaf + 1 :]], "edges": [[0, 1], [0, 2], [0, 3]]})
    answers = predict_body(load(folder), json.dumps({"instances": [star, *left]}).encode())
    whole, *others = (answer["probabilities"]["star"] for answer in answers)
    assert found["value"] == pytest.approx(whole, abs=1e-6)
    assert found["attributions"] == pytest.approx([whole - other for other in others], abs=1e-6)
    assert np.ptp(found["attributions"]) > 0.05, "nodes that count the same would prove little"


def test_the_service_answers_over_its_own_protocol(folder: Path) -> None:
    served = load(folder)
    assert isinstance(served, GraphModel)
    ring = {"nodes": [[0, 2]] * 5, "edges": [[i, (i + 1) % 5] for i in range(5)]}
    star = {"nodes": [[0, 4], *[[0, 1]] * 4], "edges": [[0, i] for i in range(1, 5)]}
    answers = predict_body(served, json.dumps({"instances": [ring, star, served.contract.sample]}).encode())
    assert [answer["label"] for answer in answers[:2]] == ["ring", "star"]
    assert sum(answers[2]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    for instance, path in (({**ring, "edges": [[0, 5]]}, "edges.0"), ({**ring, "edgs": []}, "edgs"), (3, "")):
        with pytest.raises(Refused) as refused:
            predict_body(served, json.dumps({"instances": [star, instance]}).encode())
        assert (refused.value.status, refused.value.details["path"]) == (422, f"instances.1.{path}".rstrip("."))


def test_a_graph_of_another_task_is_not_served(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    model = onnx.load(whole / "model.onnx")
    for value in model.graph.input:
        value.name = value.name.replace("sizes", "counts")
    for node in model.graph.node:
        node.input[:] = ["counts" if name == "sizes" else name for name in node.input]
    onnx.save(model, whole / "model.onnx")
    with pytest.raises(NotServable, match="the graph takes"):
        load(whole)
