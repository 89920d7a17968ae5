from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest

from headrace.data.batches import add_batch
from headrace.data.formats.graph_tables import pack, with_edges
from headrace.data.ingest import ingest
from headrace.data.tables import read_batches
from headrace.errors import DataError
from headrace.project import Project
from headrace.recipe.data import DataConfig

NODES = pa.table({"id": [10, 11, 12, 13], "w_0": [1, 0, 1, 0], "w_1": [1, 0, 0, 1], "y": ["a", "b", "a", "b"]})
DATA = DataConfig.model_validate({"source": "x", "target": "y", "graph": {"node": "id", "edges": "e", "pack": "words"}})


def edges_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_ones_are_packed_as_their_positions() -> None:
    table = pack(NODES, DATA)
    assert table.to_pydict() == {"id": [10, 11, 12, 13], "words": ["0 1", "", "0", "1"], "y": ["a", "b", "a", "b"]}


def test_a_value_that_cannot_be_packed_is_reported() -> None:
    with pytest.raises(DataError, match="2 is neither 0 nor 1") as caught:
        pack(NODES.set_column(2, "w_1", pa.array([0, 0, 2, 0])), DATA)
    assert caught.value.where == "column w_1, data row 3"


def test_neighbours_are_those_that_networkx_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [f"n{i}" for i in range(40)]
    pairs = [(ids[a], ids[b]) for a, b in rng.integers(0, 30, (120, 2))]  # doubles, loops, and ten nodes alone
    text = "# a remark\n" + "\n".join(a + " ,\t"[i % 3] + b for i, (a, b) in enumerate(pairs)) + "\n\n"
    table, alone = with_edges(pa.table({"id": ids, "y": ids}), edges_file(tmp_path / "e", text), DATA)
    graph = nx.Graph([(a, b) for a, b in pairs if a != b])
    graph.add_nodes_from(ids)
    assert [set(line.split()) for line in table["edges"].to_pylist()] == [set(graph[node]) for node in ids]
    assert alone == nx.number_of_isolates(graph) >= 10
    assert all(len(line.split()) == len(set(line.split())) for line in table["edges"].to_pylist())


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("10 11\n10 133\n", r"an edge leads to node '133', which has no row; did you mean '13'", "line 2"),
        ("10 11 12\n", r"an edge has two nodes, not 3", "line 1"),
    ],
)
def test_an_invalid_edge_is_refused_with_its_line(tmp_path: Path, text: str, message: str, where: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        with_edges(NODES, edges_file(tmp_path / "e", text), DATA)
    assert str(caught.value.where).endswith(where)


@pytest.mark.parametrize(
    ("ids", "message"), [(["a", "a"], "'a' appears twice"), (["a", None], "no id"), (["a", "b c"], "a space")]
)
def test_each_node_needs_a_unique_id(tmp_path: Path, ids: list[str | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_edges(pa.table({"id": ids, "y": ["a", "b"]}), edges_file(tmp_path / "e", ""), DATA)


def test_a_graph_is_ingested_and_extended(project: Project, make_recipe: Any, tmp_path: Path) -> None:
    (project.root / "nodes.tsv").write_text("10\t1\t1\t1\n11\t0\t0\t2\n12\t1\t0\t1\n13\t0\t1\t2\n")
    edges_file(project.root / "edges.txt", "10 11\n12 10\n")
    recipe = make_recipe(
        source="nodes.tsv",
        header=False,
        columns=["id", "w[2]", "y"],
        graph={"node": "id", "edges": "edges.txt", "pack": "words"},
    )
    lines: list[str] = []
    ingest(recipe, project, lines.append)
    assert "1 nodes have no edge" in lines
    assert read_batches(project, recipe).to_dict("list") == {
        "id": [10, 11, 12, 13],
        "words": ["0 1", "", "0", "1"],
        "y": [1, 2, 1, 2],
        "edges": ["11 12", "10", "10", ""],
    }
    first = ingest(recipe, project, lines.append)
    edges_file(project.root / "edges.txt", "10 11\n12 10\n12 13\n")
    assert ingest(recipe, project, lines.append).md5 != first.md5  # edges are a part of the source

    def batch(text: str) -> Path:
        return edges_file(tmp_path / "new.csv", "id,words,y,edges\n" + text)

    with pytest.raises(DataError, match=r"node '99', which has no row"):
        add_batch(recipe, batch("14,0,1,10 99\n"), project, lines.append)
    with pytest.raises(DataError, match=r"node '13' exists already"):
        add_batch(recipe, batch("13,0,1,10\n"), project, lines.append)
    assert add_batch(recipe, batch("14,,1,10 15\n15,1,2,\n"), project, lines.append).rows == 6
    assert read_batches(project, recipe)["edges"].tolist()[4:] == ["10 15", ""]
