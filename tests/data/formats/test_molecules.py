"""Tables whose rows are graphs: nested lists and molecules."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data.formats.files import read_file
from headrace.data.formats.molecules import ELEMENTS, in_rings
from headrace.errors import DataError

NITROBENZENE = """nitrobenzene
     by hand

  9  9  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0
    0.0000    0.0000    0.0000 C   0  0
    0.0000    0.0000    0.0000 C   0  0
    0.0000    0.0000    0.0000 C   0  0
    0.0000    0.0000    0.0000 C   0  0
    0.0000    0.0000    0.0000 C   0  0
    0.0000    0.0000    0.0000 N   0  3
    0.0000    0.0000    0.0000 O   0  0
    0.0000    0.0000    0.0000 O   0  5
  1  2  2  0
  2  3  1  0
  3  4  2  0
  4  5  1  0
  5  6  2  0
  6  1  1  0
  1  7  1  0
  7  8  2  0
  7  9  1  0
M  CHG  2   7   1   9  -1
M  END
>  <NAME>  (1)
nitrobenzene

> <SOL>
-1.8

> <NOTE>
two
lines

$$$$
"""
SALT = """salt

by hand
  2  0  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 Na  0  3
    0.0000    0.0000    0.0000 Cl  0  5
M  END
> <NAME>
salt

> <SOL>
1

$$$$
"""


@pytest.fixture
def sdf(tmp_path: Path) -> Path:
    path = tmp_path / "two.sdf"
    path.write_text(NITROBENZENE + SALT)
    return path


def test_a_molecule_is_a_row_of_atoms_bonds_and_fields(sdf: Path) -> None:
    ring, salt = read_file(sdf).to_pylist()
    assert (ring["NAME"], ring["SOL"], ring["NOTE"]) == ("nitrobenzene", -1.8, "two\nlines")
    assert (salt["SOL"], salt["NOTE"], json.loads(salt["edges"])) == (1.0, None, [])
    assert json.loads(ring["edges"]) == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 0], [0, 6], [6, 7], [6, 8]]


def test_atom_features_are_element_charge_bonds_pairs_hydrogens_and_ring(sdf: Path) -> None:
    ring, salt = (json.loads(text) for text in read_file(sdf)["nodes"].to_pylist())
    rest = [node[len(ELEMENTS) + 1 :] for node in ring]
    assert rest[0] == [0, 3, 4, 0, 1]  # the carbon that holds the nitrogen
    assert rest[1] == [0, 2, 3, 1, 1]
    assert rest[6:] == [[1, 3, 4, 0, 0], [0, 1, 2, 0, 0], [-1, 1, 1, 0, 0]]
    assert [node.index(1.0) for node in ring] == [ELEMENTS.index(name) for name in "CCCCCCNOO"]
    assert salt[0] == [*[0] * len(ELEMENTS), 1, 1, 0, 0, 0, 0]  # sodium is another element; the charge is from its own line
    assert salt[1][len(ELEMENTS) :] == [0, -1, 0, 0, 0, 0]


def test_rings_are_found() -> None:
    """A square and a triangle that share an atom, a chain to another triangle, and an atom alone."""
    square, triangle = [(0, 1), (1, 2), (2, 3), (3, 0)], [(3, 4), (4, 5), (5, 3)]
    chain, far = [(5, 6), (6, 7), (7, 8)], [(8, 9), (9, 10), (10, 8)]
    found = in_rings(12, [(one, other, 1.0) for one, other in [*square, *triangle, *chain, *far]])
    assert found == {0, 1, 2, 3, 4, 5, 8, 9, 10}
    assert in_rings(3, [(0, 1, 1.0), (1, 2, 1.0)]) == set()


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("V2000", "V3000", "not V2000"),
        ("  7  9  1  0\n", "  7 12  1  0\n", "a bond from atom 7 to atom 12, of 9"),
        ("  9  9  0", "  x  9  0", "not a valid molecule"),
        ("  9  9  0", "  0  0  0", "not a valid molecule: 0 atoms"),
    ],
)
def test_an_invalid_molecule_is_refused_with_its_line(was: str, becomes: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.sdf"
    path.write_text(SALT + NITROBENZENE.replace(was, becomes))
    with pytest.raises(DataError, match=message) as caught:
        read_file(path)
    assert caught.value.where is not None and caught.value.where.endswith("bad.sdf, line 15")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.sdf").write_text(SALT + NITROBENZENE[:200])
    with pytest.raises(DataError, match="ends within a molecule"):
        read_file(tmp_path / "cut.sdf")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_lists_of_nodes_and_edges_are_stored_as_json(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"graphs.{ending}"
    rows = [{"nodes": [[1.5], [2]], "edges": [[0, 1]], "y": 1}, {"nodes": [[0.5]], "edges": [], "y": 2}]
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    table = read_file(path)
    assert [json.loads(text) for text in table["nodes"].to_pylist()] == [row["nodes"] for row in rows]
    assert [json.loads(text) for text in table["edges"].to_pylist()] == [[[0, 1]], []]


def test_other_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lists.jsonl").write_text('{"a": [1, 2]}\n')
    with pytest.raises(DataError, match="'a' holds list"):
        read_file(tmp_path / "lists.jsonl")
