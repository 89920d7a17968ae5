"""Questions about nodes: each way to ask against the whole graph at once, and every way to ask wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.runtime import node_queries
from headrace.runtime.contract import Contract
from headrace.runtime.graph import Graph, Subgraph, make_graph
from headrace.runtime.node_queries import NodePredictor
from headrace.runtime.violations import ContractViolation

FEATURES = 4
CONTRACT = Contract(
    model="net", task="node-classification", inputs=[], output="probabilities", labels=["a", "b"], target="y", sample={}
)


def two_rounds(part: Subgraph) -> NDArray[Any]:
    """A stand-in for the network that looks two edges far and at the degree beyond: twice the mean over neighbours, each
    weighed by its degree. Its answer for a node changes with every node that it should see."""
    a = np.eye(len(part.features))
    a[part.edges[:, 1], part.edges[:, 0]] = 1
    degree = a.sum(1)
    a = a / np.sqrt(degree[:, None] * degree[None, :])
    score = (a @ a @ part.features @ np.arange(1, FEATURES + 1))[:, None]
    found: NDArray[Any] = 1 / (1 + np.exp(np.concatenate([score, -score], axis=1)))
    return found


def random_graph(count: int = 60, edges: int = 70) -> Graph:
    rng = np.random.default_rng(3)
    every = np.arange(FEATURES, dtype=np.int32)
    values = [(every, rng.normal(size=FEATURES).astype(np.float32)) for _ in range(count)]
    return make_graph([f"p{i}" for i in range(count)], FEATURES, values, rng.integers(0, count, (edges, 2)))


@pytest.fixture
def asked() -> NodePredictor:
    return NodePredictor(random_graph(), 3, two_rounds, CONTRACT)


def first(answers: list[dict[str, Any]]) -> list[float]:
    return [answer["probabilities"]["a"] for answer in answers]


def test_known_nodes_are_answered_as_in_the_whole_graph(asked: NodePredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = two_rounds(asked.graph.subgraph(np.arange(60)))
    at_once = asked.answer([{"node": f"p{i}"} for i in range(60)])
    monkeypatch.setattr(node_queries, "MAX_CELLS", 0)
    together = asked.answer([{"node": f"p{i}"} for i in range(60)])
    alone = [asked.answer([{"node": f"p{i}"}])[0] for i in range(60)]
    monkeypatch.setattr(node_queries, "NODES_PER_RUN", 7)
    in_parts = asked.answer([{"node": f"p{i}"} for i in range(60)])
    for answers in (at_once, together, alone, in_parts):
        np.testing.assert_allclose(first(answers), whole[:, 0], atol=1e-6)


def test_only_the_neighbourhood_of_a_node_is_computed(asked: NodePredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_queries, "MAX_CELLS", 0)
    seen: list[Subgraph] = []

    def watched(part: Subgraph) -> NDArray[Any]:
        seen.append(part)
        return two_rounds(part)

    NodePredictor(asked.graph, 3, watched, CONTRACT).answer([{"node": "p5"}])
    assert [len(part.features) for part in seen] == [len(asked.graph.around(np.array([5]), 3))]
    assert len(seen[0].features) < 60


def test_the_nodes_of_a_small_graph_are_answered_once(asked: NodePredictor) -> None:
    runs: list[int] = []

    def watched(part: Subgraph) -> NDArray[Any]:
        runs.append(len(part.features))
        return two_rounds(part)

    seen = NodePredictor(asked.graph, 3, watched, CONTRACT)
    assert runs == []
    seen.answer([{"node": "p5"}])
    seen.answer([{"node": "p6"}, {"node": "p5"}])
    assert runs == [60]


def test_a_new_node_is_answered_as_if_it_had_been_in_the_graph(asked: NodePredictor) -> None:
    features, neighbours = [0.5, -1.0, 2.0, 0.0], [4, 17, 30]
    whole = asked.graph.subgraph(np.arange(60)).with_node(np.array(features, np.float32), np.array(neighbours))
    wanted = two_rounds(whole)[-1, 0]
    for named in (["p4", "p17", "p30"], ["p30", "p4", "p4", "p17"], "p4 p17 p30"):
        assert first(asked.answer([{"features": features, "neighbours": named}])) == pytest.approx([wanted], abs=1e-6)


def test_a_new_node_without_edges_is_answered(asked: NodePredictor) -> None:
    wanted = 1 / (1 + np.exp(1 + 4 * 1))
    for instance in ({"features": {"present": [0, 3]}, "neighbours": []}, {"features": [1, 0, 0, 1]}):
        assert first(asked.answer([instance])) == pytest.approx([wanted], abs=1e-6)


def test_a_custom_graph_is_answered_node_by_node(asked: NodePredictor) -> None:
    rows, edges = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], [[0, 1], [1, 0], [1, 2], [2, 2]]
    part = Subgraph(np.array(rows, np.float32), np.array([[0, 1], [1, 0], [1, 2], [2, 1]]))
    (answer,) = asked.answer([{"nodes": [rows[0], {"present": [1]}, rows[2]], "edges": edges}])
    np.testing.assert_allclose(first(answer["nodes"]), two_rounds(part)[:, 0], atol=1e-6)
    (lonely,) = asked.answer([{"nodes": [rows[0]]}])
    assert len(lonely["nodes"]) == 1


def test_kinds_of_instances_can_be_mixed_without_affecting_each_other(asked: NodePredictor) -> None:
    asking = [{"node": "p3"}, {"features": [1, 2, 3, 4], "neighbours": ["p3"]}, {"nodes": [[1, 1, 1, 1]]}, {"node": "p1"}]
    assert asked.answer(asking) == [asked.answer([one])[0] for one in asking]


def test_numbers_are_ids_too() -> None:
    graph = make_graph(["31336", "7"], FEATURES, [(np.zeros(0, np.int32), np.zeros(0, np.float32))] * 2, np.array([[0, 1]]))
    asked = NodePredictor(graph, 3, two_rounds, CONTRACT)
    assert asked.answer([{"node": 31336}]) == asked.answer([{"node": "31336"}])


@pytest.mark.parametrize(
    ("instance", "path", "said"),
    [
        (3, "", "an object with a node, or features with neighbours, or nodes with edges, got int 3"),
        ({}, "", "got none of these"),
        ({"neighbours": ["p1"]}, "", "got none of these"),
        ({"node": "p1", "features": [1, 2, 3, 4]}, "", "got an object with node and features"),
        ({"nod": "p1"}, ".nod", r"one of the fields edges, features, neighbours, node, nodes \(did you mean 'node'\?\)"),
        ({"node": "p1", "edges": []}, ".edges", "no field beside node"),
        ({"node": "p11x"}, ".node", r"a node of the graph \(did you mean 'p11'\?\), got str 'p11x'"),
        ({"node": 1.5}, ".node", "the id of a node, got float 1.5"),
        ({"node": True}, ".node", "the id of a node, got bool True"),
        ({"node": ["p1"]}, ".node", "the id of a node, got list"),
        ({"features": [1, 2]}, ".features", r"in shape \[4\], or \{\"present\": \[positions\]\}, got a list of 2"),
        ({"features": [1, 2, 3, "x"]}, ".features", "a number in shape"),
        ({"features": [1, 2, 3, 10**400]}, ".features", "a number"),
        ({"features": {"present": [4]}}, ".features.present.0", "a position from 0 to 3, got int 4"),
        ({"features": {"present": [1, -1]}}, ".features.present.1", "a position from 0 to 3, got int -1"),
        ({"features": {"present": 1}}, ".features", r"\{\"present\": \[positions\]\}"),
        ({"features": {"presents": [1]}}, ".features", r"\{\"present\": \[positions\]\}"),
        ({"features": [1, 2, 3, 4], "neighbours": ["p1", "q"]}, ".neighbours.1", "the id of a node of the graph"),
        ({"features": [1, 2, 3, 4], "neighbours": 5}, ".neighbours", "a list of ids, got int 5"),
        ({"nodes": []}, ".nodes", "a list with the features of each node"),
        ({"nodes": "x"}, ".nodes", "a list with the features of each node"),
        ({"nodes": [[1, 2, 3, 4], [1]]}, ".nodes.1", "a number in shape"),
        ({"nodes": [[1, 2, 3, 4]], "edges": [[0, 1]]}, ".edges.0", r"two node indices from 0 to 0, got list \[0, 1\]"),
        ({"nodes": [[1, 2, 3, 4]], "edges": [[0, 0], [0]]}, ".edges.1", "two node indices"),
        ({"nodes": [[1, 2, 3, 4]], "edges": [[0, -1]]}, ".edges.0", "two node indices"),
        ({"nodes": [[1, 2, 3, 4]], "edges": {"0": 1}}, ".edges", "a list of pairs"),
    ],
)
def test_the_invalid_field_is_named(asked: NodePredictor, instance: Any, path: str, said: str) -> None:
    with pytest.raises(ContractViolation, match=said) as caught:
        asked.answer([{"node": "p0"}, instance])
    assert caught.value.path == f"instances.1{path}"


def test_a_graph_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_queries, "MAX_CELLS", 8)
    asked = NodePredictor(random_graph(), 3, two_rounds, CONTRACT)
    asked.answer([{"nodes": [{"present": []}] * 2}])
    with pytest.raises(ContractViolation, match="at most 2 nodes, got 3 nodes"):
        asked.answer([{"nodes": [{"present": []}] * 3}])
