"""Stores a graph as one table: a row is a node, with the ids of its neighbours as text in another column."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.data.formats.encoding import decoded, unpacked
from headrace.errors import DataError
from headrace.recipe.data import EDGES

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.data import DataConfig


def pack(table: pa.Table, data: DataConfig) -> pa.Table:
    """Packs the columns of 0 and 1 into one text column, `data.graph.pack`: the positions of the ones, ascending, separated by
    spaces.

    Raises:
        DataError: a value is neither 0 nor 1.
    """
    import pyarrow as pa

    assert data.graph is not None and data.graph.pack is not None
    names = data.features(table.column_names)
    matrix = np.column_stack([table[name].to_numpy() for name in names])
    wrong = (matrix != 0) & (matrix != 1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"{matrix[row, column]} is neither 0 nor 1, and only these can be packed",
            where=f"column {names[column]}, data row {row + 1}",
            hint="correct the value, or remove data.graph.pack",
        )
    packed = pa.array([" ".join(map(str, np.flatnonzero(row))) for row in matrix], pa.string())
    others = [name for name in table.column_names if name not in set(names) and name != data.target]
    return pa.table({**{name: table[name] for name in others}, data.graph.pack: packed, data.target: table[data.target]})


def with_edges(table: pa.Table, path: Path, data: DataConfig) -> tuple[pa.Table, int]:
    """Returns `table` with the column `edges`, and the number of nodes without an edge. A node is not its own neighbour.

    Raises:
        DataError: two rows have the same id, or the file at `path` names a node without a row.
    """
    import pyarrow as pa

    nodes = node_ids(table, data)
    near: dict[str, set[str]] = {node: set() for node in nodes}
    text = decoded(unpacked(path, path.suffix if path.suffix == ".gz" else ""), data.encoding, path)
    for number, line in enumerate(text.splitlines(), start=1):
        ends = line.replace(",", " ").split()
        if not ends or line.startswith("#"):  # SNAP and others write comments this way
            continue
        if len(ends) != 2:
            raise DataError(
                f"an edge has two nodes, not {len(ends)}: {line[:60]!r}",
                where=f"{path}, line {number}",
                hint="write two ids per line, separated by a space, a tab or a comma",
            )
        for end in ends:
            if end not in near:
                raise _unknown(end, f"{path}, line {number}", near)
        one, other = ends
        if one != other:
            near[one].add(other)
            near[other].add(one)
    order = {node: i for i, node in enumerate(nodes)}
    edges = pa.array([" ".join(sorted(near[node], key=order.__getitem__)) for node in nodes], pa.string())
    return table.append_column(EDGES, edges), sum(not found for found in near.values())


def check_edges(table: pa.Table, data: DataConfig, known: Iterable[str], path: Path) -> None:
    """Checks that the edges of a batch lead to existing nodes.

    Args:
        known: ids of the nodes of earlier batches.

    Raises:
        DataError: a node exists already, or an edge leads to a node that is neither in the data nor in the batch.
    """
    before = set(known)
    nodes = node_ids(table, data)
    for i, node in enumerate(nodes):
        if node in before:
            raise DataError(f"node {node!r} exists already", where=f"{path}, data row {i + 1}", hint="remove that row")
    all_nodes = before | set(nodes)
    for i, text in enumerate(table[EDGES].to_pylist()):
        for end in (text or "").split():
            if end not in all_nodes:
                raise _unknown(end, f"{path}, data row {i + 1}", all_nodes)


def node_ids(table: pa.Table, data: DataConfig) -> list[str]:
    """Returns the nodes' ids as text, in the order of the rows.

    Raises:
        DataError: an id is missing, appears twice, or contains a space.
    """
    assert data.graph is not None
    ids = ["" if value is None else str(value) for value in table[data.graph.node].to_pylist()]
    seen: set[str] = set()
    for i, node in enumerate(ids):
        if not node or node in seen or node.split() != [node]:
            what = "no id" if not node else f"the id {node!r} " + ("appears twice" if node in seen else "contains a space")
            raise DataError(
                f"{what}; every node needs a unique id without spaces",
                where=f"column {data.graph.node}, data row {i + 1}",
                hint="correct the id, or set data.graph.node to another column",
            )
        seen.add(node)
    return ids


def no_gaps(table: pa.Table, data: DataConfig) -> pa.Table:
    """Replaces missing values of edges and packed words by empty texts, as a CSV has no empty text."""
    import pyarrow.compute as pc

    assert data.graph is not None
    for name in {EDGES, data.graph.pack} & set(table.column_names):
        i = table.column_names.index(name)
        table = table.set_column(i, name, pc.fill_null(table[name].cast("string"), ""))
    return table


def _unknown(node: str, where: str, known: Iterable[str]) -> DataError:
    close = difflib.get_close_matches(node, list(known)[:5000], n=1)
    return DataError(
        f"an edge leads to node {node!r}, which has no row" + (f"; did you mean {close[0]!r}?" if close else ""),
        where=where,
        hint="remove the edge, or add a row for the node",
    )
