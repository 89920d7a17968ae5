"""Node classification: what is learned of a graph, what stays unseen, and a tiny recipe from its data to the service."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bentos.app import PredictionApp
from bentos.models.nodes import NodeModel
from bentos.models.onnx_model import NotServable, load
from bentos.telemetry.sample_rows import SampledRow, SampleEncoder
from headrace.data.batches import add_batch
from headrace.data.splits import Splits
from headrace.errors import DataError, ExportError, RecipeError
from headrace.files import read_json
from headrace.models.schema import Schema
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release.decision import judge
from headrace.runtime.contract import Contract
from headrace.runtime.http import Refused
from headrace.task_types import node_classification
from headrace.task_types.lookup import task_type_of
from headrace.task_types.node_classification import graph_of
from headrace.tracking.registry import Version
from tests.asgi import predict_body
from tests.bento_projects import make_model, make_recipe, run_stages
from tests.bentos.protocols.explain_requests import ask, send
from tests.projects import make_project

RECIPE = """
name: clubs
task: node-classification
data:
  source: members.csv
  target: club
  graph: {node: name, edges: friends.txt, pack: likes}
  split: {per_class: {train: 4, validation: 12, test: 20}, seed: 7}
expect: []
model: {name: gcn, hidden: [8], dropout: 0.2}
train: {epochs: 20, batch_size: 64, optimizer: adam, learning_rate: 0.05, weight_decay: 0.0005, schedule: constant, device: cpu}
gate: {require: {accuracy: ">= 0.8"}, beat_champion: {metric: accuracy}}
serve: {}
"""
LIKES = 6


pytestmark = pytest.mark.usefixtures("one_thread")


def clubs(members: int = 80, seed: int = 0) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Two clubs: most friends and most likes are within a club. Member m0 has no friend."""
    rng = np.random.default_rng(seed)
    club = np.arange(members) % 2
    likes = (rng.random((members, LIKES)) < 0.25 + 0.3 * (np.arange(LIKES) % 2 == club[:, None])).astype(int)
    likes[:, LIKES - 1] = 0
    likes[1, LIKES - 1] = 1
    pairs = [
        (i, int(j)) for i in range(1, members) for j in rng.integers(1, members, 4) if club[i] == club[j] or rng.random() < 0.05
    ]
    frame = pd.DataFrame(likes, columns=[f"like_{i}" for i in range(LIKES)])
    frame.insert(0, "name", [f"m{i}" for i in range(members)])
    return frame.assign(club=np.where(club == 0, "chess", "tennis")), [(f"m{i}", f"m{j}") for i, j in pairs if i != j]


def nodes_of(frame: pd.DataFrame, pairs: list[tuple[str, str]], pack: bool = True) -> pd.DataFrame:
    """The table as it lands."""
    near: dict[str, set[str]] = {name: set() for name in frame["name"]}
    for one, other in pairs:
        near[one].add(other)
        near[other].add(one)
    likes = [" ".join(map(str, np.flatnonzero(row))) for row in frame[[f"like_{i}" for i in range(LIKES)]].to_numpy()]
    landed = pd.DataFrame({"name": frame["name"], "likes": likes}) if pack else frame.drop(columns="club")
    return landed.assign(edges=[" ".join(sorted(near[name])) for name in frame["name"]], club=frame["club"])


def recipe_of(model: dict[str, Any] | None = None, **data: Any) -> Recipe:
    graph = {"node": "name", "edges": "friends.txt", "pack": "likes"}
    return make_recipe(
        "node-classification", model=model or {"name": "gcn", "hidden": [4]}, target="club", **{"graph": graph, **data}
    )


def divided(frame: pd.DataFrame) -> Splits:
    parts = [frame.iloc[start : start + 20].reset_index(drop=True) for start in range(0, 80, 20)]
    return Splits(*parts)


def test_a_graph_task_needs_a_graph() -> None:
    with pytest.raises(RecipeError, match=r"data\.graph: graph tasks need the ids of the nodes and the edges"):
        make_recipe("node-classification", model={"name": "gcn"})


def test_the_schema_holds_all_nodes_and_of_labels_the_training_ones() -> None:
    landed = nodes_of(*clubs())
    splits = divided(landed)
    schema = task_type_of("node-classification").learn(splits, recipe_of())
    graph = graph_of(schema)
    assert graph.ids.tolist() == landed["name"].tolist()
    assert schema.labels == ["chess", "tennis"]
    assert (schema.shape.features, schema.shape.outputs) == (LIKES, 2)
    for other in (splits.validation, splits.test, splits.rest):
        other["club"] = "golf"
    assert task_type_of("node-classification").learn(splits, recipe_of()) == schema  # no label of theirs is in it
    assert Schema.model_validate_json(schema.model_dump_json()) == schema


def test_features_are_the_positions_of_the_ones() -> None:
    frame, pairs = clubs()
    graph = graph_of(task_type_of("node-classification").fit(nodes_of(frame, pairs), recipe_of()))
    full = graph.subgraph(np.arange(80)).features
    np.testing.assert_array_equal(full, frame[[f"like_{i}" for i in range(LIKES)]].to_numpy())
    assert graph.degrees[0] == 0


def test_an_edge_that_one_row_names_counts_in_both_directions() -> None:
    """A node that comes later names older ones, whose rows stay as they were."""
    landed = nodes_of(*clubs())
    landed.loc[79, "edges"] = "m0"
    graph = graph_of(task_type_of("node-classification").fit(landed, recipe_of()))
    assert [0, 79] in graph.edges.tolist() and [79, 0] in graph.edges.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edges": "m1 nobody"}, "an edge leads from node 'm3' to 'nobody', which is in no row"),
        ({"likes": "1 x"}, "'x' is not the position of a feature"),
        ({"likes": "-1"}, "'-1' is not the position"),
    ],
)
def test_values_that_are_not_graphs_are_refused(change: dict[str, str], said: str) -> None:
    landed = nodes_of(*clubs())
    for column, value in change.items():
        landed.loc[3, column] = value
    with pytest.raises(DataError, match=said) as caught:
        task_type_of("node-classification").fit(landed, recipe_of())
    assert caught.value.hint


def test_nodes_of_no_feature_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="no node has a feature"):
        task_type_of("node-classification").fit(nodes_of(*clubs()).assign(likes=""), recipe_of())
    with pytest.raises(DataError, match="no features"):
        task_type_of("node-classification").fit(nodes_of(*clubs()).drop(columns="likes"), recipe_of())
    with pytest.raises(DataError, match="column 'likes' contains text"):
        task_type_of("node-classification").fit(nodes_of(*clubs()).assign(age=3), recipe_of())


def numbers(rows: int = 80) -> pd.DataFrame:
    """Nodes with columns of numbers, one of them missing."""
    frame, pairs = clubs(rows)
    landed = nodes_of(frame, pairs, pack=False)
    landed["like_0"] = np.random.default_rng(1).normal(50, 10, rows)
    landed.loc[5, "like_0"] = np.nan
    return landed


@pytest.mark.parametrize(
    ("model", "pack"),
    [({"name": "gcn", "hidden": [4]}, True), ({"name": "gat", "hidden": [4], "heads": 2}, False)],
    ids=["gcn, packed", "gat, numbers"],
)
def test_the_exported_graph_answers_as_torch(model: dict[str, Any], pack: bool, tmp_path: Path) -> None:
    recipe = recipe_of(model, graph={"node": "name", "edges": "friends.txt"})
    landed = nodes_of(*clubs()) if pack else numbers()
    task_type = task_type_of(recipe.task)
    schema = task_type.learn(divided(landed), recipe)
    network = make_model(recipe, schema)
    contract = task_type.contract(schema, recipe, landed.iloc[[30]])
    contract.write(tmp_path / "contract.json")
    assert task_type.export(network, schema, recipe, contract, landed, tmp_path)["largest_relative_difference"] < 1e-5
    with torch.inference_mode():
        wanted = network(torch.arange(80)).numpy()
    np.testing.assert_allclose(task_type.answers(tmp_path, landed, recipe), wanted, atol=1e-5)
    assert np.ptp(wanted[:, 0]) > 1e-3  # it tells nodes apart

    served = load(tmp_path)
    said = served.predict([{"node": name} for name in landed["name"]])
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in said], wanted, atol=1e-5)
    # The stored graph, sent by a client, gives the same answers.
    part = graph_of(schema).subgraph(np.arange(80))
    own = {
        "nodes": np.nan_to_num(part.features, nan=float(np.nanmean(part.features[:, 0]))).tolist(),
        "edges": part.edges.tolist(),
    }
    (own_answers,) = served.predict(json.loads(json.dumps([own])))
    got = [list(one["probabilities"].values()) for one in own_answers["nodes"]]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_an_export_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, landed = recipe_of(), nodes_of(*clubs())
    task_type = task_type_of(recipe.task)
    schema = task_type.fit(landed, recipe)
    contract = task_type.contract(schema, recipe, landed.iloc[:1])
    right = node_classification._open_answers

    def short_sighted(folder: Path, contract: Contract) -> Any:
        opened = right(folder, contract)
        opened.hops = 1
        return opened

    monkeypatch.setattr(node_classification, "_open_answers", short_sighted)
    with pytest.raises(ExportError, match="differs from torch"):
        task_type.export(make_model(recipe, schema), schema, recipe, contract, landed, tmp_path)


def test_a_champion_answers_for_nodes_that_it_never_saw(tmp_path: Path) -> None:
    """As new ones beside those that it knows; what it does not know of them, features and neighbours, is left out."""
    recipe, landed = recipe_of({"name": "appnp", "hidden": [4], "steps": 3}), nodes_of(*clubs())
    task_type = task_type_of(recipe.task)
    old = landed[landed["name"] != "m79"].reset_index(drop=True)
    old["edges"] = [" ".join(end for end in ends.split() if end != "m79") for ends in old["edges"]]
    schema = task_type.fit(old, recipe)
    contract = task_type.contract(schema, recipe, old.iloc[:1])
    contract.write(tmp_path / "contract.json")
    task_type.export(make_model(recipe, schema), schema, recipe, contract, old, tmp_path)
    new = landed.iloc[[3, 79]].reset_index(drop=True)
    new.loc[1, "likes"] = "0 2 9999"
    new.loc[1, "edges"] = "m1 m4 m80"
    got = task_type.answers(tmp_path, new, recipe)
    served = load(tmp_path).predict([{"node": "m3"}, {"features": {"present": [0, 2]}, "neighbours": ["m1", "m4"]}])
    np.testing.assert_allclose(got, [list(one["probabilities"].values()) for one in served], atol=1e-6)


# A recipe through all stages.


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("clubs") / "clone")
    frame, pairs = clubs()
    frame.to_csv(made.root / "members.csv", index=False)
    (made.root / "friends.txt").write_text("".join(f"{one} {other}\n" for one, other in pairs))
    (made.recipes / "clubs.yaml").write_text(RECIPE)
    run_stages(made, "clubs")
    return made


@pytest.fixture
def folder(project: Project) -> Path:
    return project.artifacts("clubs") / "export"


def test_a_network_that_reads_no_graph_is_refused(project: Project) -> None:
    schema = Schema.read(project.artifacts("clubs") / "prepared" / "schema.json")
    with pytest.raises(RecipeError, match="does not build a GraphNetwork"):
        task_type_of("node-classification").module(make_recipe("classification").model, schema)


def test_the_tiny_recipe_passes_its_gate(project: Project) -> None:
    recipe = load_recipe("clubs", project)
    artifacts = project.artifacts("clubs")
    metrics = read_json(artifacts / "evaluation" / "metrics.json")
    assert metrics["accuracy"] >= 0.8
    assert read_json(artifacts / "train" / "summary.json")["train_rows"] == 8
    assert judge(recipe, Version(recipe.name, "1", "run", artifacts / "export", {}), None, project).passed
    slices = read_json(artifacts / "evaluation" / "evaluation.json")["slices"]
    assert {one["column"] for one in slices} == {"neighbours"} and sum(one["rows"] for one in slices) == 20


def test_of_a_graph_a_sample_keeps_the_sizes_alone(folder: Path) -> None:
    served = load(folder)
    instances = [served.contract.sample, *served.contract.examples]
    encoder = SampleEncoder(served)
    lines = [
        encoder.encode(SampledRow(0.0, "r", "acme", row, instance, answer, is_instance=True))
        for row, (instance, answer) in enumerate(zip(instances, served.predict(instances), strict=True))
    ]
    rows = [json.loads(line) for line in lines if line is not None]
    new, graph = served.contract.examples
    assert [row["inputs"] for row in rows] == [
        {"node": {"size": 1}},
        {"features": {"size": len(new["features"]["present"])}, "neighbours": {"size": 1}},
        {"nodes": {"size": len(graph["nodes"])}, "edges": {"size": len(graph["edges"])}},
    ]
    assert all(0.0 < row["confidence"] <= 1.0 and row["answer"] in ("chess", "tennis") for row in rows[:2])
    assert set(rows[2]["answer"]) <= {"chess", "tennis"} and len(rows[2]["answer"]) == len(graph["nodes"])


def test_the_service_answers_every_way_to_ask_over_its_own_protocol(folder: Path) -> None:
    served = load(folder)
    assert isinstance(served, NodeModel)
    contract = served.contract
    asked = [contract.sample, *contract.examples]
    answers = predict_body(served, json.dumps({"instances": asked}).encode())
    assert {a["label"] for a in (*answers[:2], *answers[2]["nodes"])} <= {"chess", "tennis"}
    assert len(answers[2]["nodes"]) == len(contract.examples[1]["nodes"])
    likely = predict_body(served, b'{"features": {"present": [1]}, "neighbours": ["m1", "m3", "m5", "m7"]}')
    assert likely[0]["label"] == "tennis"
    with pytest.raises(Refused) as refused:
        predict_body(served, b'{"instances": [{"node": "m800"}]}')
    assert (refused.value.status, refused.value.details["path"]) == (422, "instances.0.node")
    assert "did you mean 'm8" in refused.value.message


def by_hand(project: Project, likes: list[int], friends: list[str]) -> dict[str, float]:
    """The trained network's answer for a new member, worked out in numpy with every member in one full matrix."""
    weights = torch.load(project.artifacts("clubs") / "train" / "model.pt", weights_only=True)
    frame, pairs = clubs()
    place = {name: i for i, name in enumerate([*frame["name"], "new"])}
    near = np.eye(len(place))
    for one, other in [*pairs, *(("new", friend) for friend in friends)]:
        near[place[one], place[other]] = near[place[other], place[one]] = 1
    scale = near.sum(axis=1) ** -0.5
    near = scale[:, None] * near * scale
    mine = np.isin(np.arange(LIKES), likes)
    features = np.vstack([frame[[f"like_{i}" for i in range(LIKES)]].to_numpy(float), mine])
    features /= np.maximum(features.sum(axis=1, keepdims=True), 1e-12)
    layers = [
        tuple(weights[f"network.layers.{i}.{part}"].double().numpy() for part in ("project.weight", "bias")) for i in (0, 1)
    ]
    (first, first_bias), (second, second_bias) = layers
    hidden = np.maximum(near @ features @ first + first_bias, 0)
    logits = (near @ hidden @ second + second_bias)[-1] / float(weights["temperature"])
    grown = np.exp(logits - logits.max())
    return dict(zip(["chess", "tennis"], (grown / grown.sum()).tolist(), strict=True))


def test_an_explanation_says_how_much_a_new_node_loses_with_each_neighbour(project: Project, folder: Path) -> None:
    app = PredictionApp()
    app.model = load(folder)
    likes, friends = [1, 2], ["m1", "m3", "m2", "m7", "m0"]
    found = ask(app, instance={"features": {"present": likes}, "neighbours": friends}, target="tennis")
    assert (found["method"], found["evaluations"], found["base_value"]) == ("leave one neighbour out", 6, None)
    whole = by_hand(project, likes, friends)["tennis"]
    falls = [whole - by_hand(project, likes, [f for f in friends if f != friend])["tennis"] for friend in friends]
    assert found["value"] == pytest.approx(whole, abs=1e-5)
    assert found["attributions"] == pytest.approx(falls, abs=1e-5)
    assert np.ptp(falls) > 0.05, "neighbours that count the same would prove little"
    other = ask(app, instance={"features": {"present": likes}, "neighbours": friends}, target="chess")
    assert other["attributions"] == pytest.approx([-fall for fall in falls], abs=1e-5)


def test_the_only_neighbour_may_be_left_out_and_a_known_node_has_none_to_leave_out(project: Project, folder: Path) -> None:
    app = PredictionApp()
    app.model = load(folder)
    found = ask(app, instance={"features": {"present": [1]}, "neighbours": ["m1"]}, target="tennis")
    alone = by_hand(project, [1], [])["tennis"]
    assert found["attributions"] == pytest.approx([by_hand(project, [1], ["m1"])["tennis"] - alone], abs=1e-5)
    for instance in ({"node": "m1"}, {"features": {"present": [1]}}, {"features": {"present": [1]}, "neighbours": []}):
        refused = send(app, json.dumps({"instance": instance}).encode())
        assert (refused.status_code, refused.json()["error"]["path"]) == (422, "instance")
    refused = send(app, json.dumps({"instance": {"features": {"present": [1]}, "neighbours": ["m1", "m999"]}}).encode())
    assert refused.json()["error"]["path"] == "instance.neighbours.1"


def test_a_model_whose_parts_do_not_fit_is_not_served(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    (whole / "graph.npz").unlink()
    with pytest.raises(NotServable, match=r"graph\.npz cannot be read"):
        load(whole)
    (whole / "graph.npz").write_bytes(b"no archive")
    with pytest.raises(NotServable, match=r"graph\.npz cannot be read"):
        load(whole)
    from tests.runtime.random_graphs import random_graph

    (whole / "graph.npz").write_bytes(random_graph(9, 12, features=4)[0].to_bytes())
    with pytest.raises(NotServable, match="6 features; the stored graph has 4"):
        load(whole)


def test_new_nodes_are_added_as_a_batch_and_edges_to_unknown_nodes_are_refused(project: Project, tmp_path: Path) -> None:
    recipe = load_recipe("clubs", project)
    batch = pd.DataFrame(
        {"name": ["n1", "n2"], "likes": ["1 3", "0"], "edges": ["m1 m3", "n1 nobody"], "club": ["tennis", "chess"]}
    )
    batch.to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(DataError, match="node 'nobody', which has no row"):
        add_batch(recipe, tmp_path / "more.csv", project, lambda line: None)
