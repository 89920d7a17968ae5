"""A graph in sparse form, against sets and dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.runtime.graph import Graph, ragged, undirected
from tests.runtime.random_graphs import random_graph


def test_edges_count_once_in_each_direction_and_none_from_a_node_to_itself() -> None:
    found = undirected(np.array([[0, 1], [1, 0], [0, 1], [2, 2], [3, 1]]))
    assert sorted(map(tuple, found.tolist())) == [(0, 1), (1, 0), (1, 3), (3, 1)]
    assert undirected(np.zeros((0, 2), np.int64)).shape == (0, 2)


def test_the_graph_holds_its_edges_and_degrees() -> None:
    graph, _, edges = random_graph(12, 20)
    assert set(map(tuple, graph.edges.tolist())) == edges
    assert graph.degrees.tolist() == [sum(i == node for i, _ in edges) for node in range(12)]
    assert graph.index["n7"] == 7


@pytest.mark.parametrize("hops", [0, 1, 2, 5])
def test_around_a_node_are_those_that_so_many_edges_reach(hops: int) -> None:
    graph, _, edges = random_graph(40, 35)
    for start in ([3], [0, 9], []):
        reached = set(start)
        for _ in range(hops):
            reached |= {j for i, j in edges if i in reached}
        assert graph.around(np.array(start, np.int64), hops).tolist() == sorted(reached)


def test_a_part_has_the_features_of_its_nodes_and_the_edges_among_them() -> None:
    graph, full, edges = random_graph(20, 30)
    nodes = np.array([0, 4, 5, 11, 19])
    part = graph.subgraph(nodes)
    np.testing.assert_array_equal(part.features, full[nodes])
    back = {(int(nodes[i]), int(nodes[j])) for i, j in part.edges}
    assert back == {(i, j) for i, j in edges if {i, j} <= set(nodes.tolist())}
    assert len(back) == len(part.edges)
    everything = graph.subgraph(np.arange(20))
    assert set(map(tuple, everything.edges.tolist())) == edges


def test_a_part_of_no_node_or_of_one_alone() -> None:
    graph, full, _ = random_graph(3, 0)
    assert graph.subgraph(np.zeros(0, np.int64)).features.shape == (0, 5)
    alone = graph.subgraph(np.array([1]))
    assert alone.edges.shape == (0, 2)
    np.testing.assert_array_equal(alone.features, full[[1]])


def test_a_node_joins_a_part_at_its_end() -> None:
    graph, _, _ = random_graph(4, 0)
    part = graph.subgraph(np.array([0, 2])).with_node(np.arange(5, dtype=np.float32), np.array([1]))
    assert part.features[2].tolist() == [0, 1, 2, 3, 4]
    assert sorted(map(tuple, part.edges.tolist())) == [(1, 2), (2, 1)]
    lonely = graph.subgraph(np.zeros(0, np.int64)).with_node(np.ones(5, np.float32), np.zeros(0, np.int64))
    assert (lonely.features.shape, lonely.edges.shape) == ((1, 5), (0, 2))


def test_a_graph_comes_back_from_its_bytes_which_are_the_same_each_time() -> None:
    graph, full, edges = random_graph(9, 12)
    content = graph.to_bytes()
    assert content == random_graph(9, 12)[0].to_bytes()
    back = Graph.from_bytes(content)
    assert back.index == graph.index and set(map(tuple, back.edges.tolist())) == edges
    np.testing.assert_array_equal(back.subgraph(np.arange(9)).features, full)


def test_a_pickle_is_no_graph(tmp_path: object) -> None:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Graph.from_bytes(buffer.getvalue())


def test_rows_of_a_ragged_array_are_found_with_the_empty_ones_among_them() -> None:
    starts = np.array([0, 2, 2, 5])
    assert ragged(starts, np.array([2, 1, 0])).tolist() == [2, 3, 4, 0, 1]
    assert ragged(starts, np.array([1])).tolist() == []
