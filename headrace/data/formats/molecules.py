"""Reads tables whose rows are graphs: nested lists become JSON text, molecules (SDF) become nodes with features and edges."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.data.formats.encoding import as_utf8
from headrace.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.data.formats.options import ReadOptions

NODES, EDGES = "nodes", "edges"
ELEMENTS = ("C", "N", "O", "F", "P", "S", "Cl", "Br", "I", "H")
VALENCES = {"C": (4,), "N": (3, 5), "O": (2,), "F": (1,), "P": (3, 5), "S": (2, 4, 6), "Cl": (1,), "Br": (1,), "I": (1,)}
"""Bonds that an atom makes. Missing ones are hydrogens, which files of this format leave out."""
CHARGES = {1: 3, 2: 2, 3: 1, 5: -1, 6: -2, 7: -3}
"""Charge for the code in an atom's line, in a molecule without a line `M  CHG`."""
AROMATIC = 4

Atom = tuple[str, int]
"""Element and charge."""
Bond = tuple[int, int, float]
"""Positions of both atoms, and the number of electron pairs they share."""


def graphs_as_text(table: pa.Table) -> pa.Table:
    """Converts the columns `nodes` and `edges` to JSON text if they are lists."""
    import pyarrow as pa

    for name in (NODES, EDGES):
        if name in table.column_names and (pa.types.is_list(table[name].type) or pa.types.is_large_list(table[name].type)):
            texts = [None if value is None else json.dumps(value) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return table


def read_molecules(raw: bytes, path: Path, options: ReadOptions) -> pa.Table:
    """Reads one row per molecule of an SDF file (V2000): `nodes`, `edges`, and the data fields.

    Raises:
        DataError: a molecule is invalid, or the file ends within one.
    """
    import pyarrow as pa

    lines = as_utf8(raw, options.encoding, path).decode().splitlines()
    rows, start = [], 0
    for at, line in enumerate(lines):
        if line.startswith("$$$$"):
            rows.append(_molecule(lines[start:at], f"{path}, line {start + 1}"))
            start = at + 1
    if not rows or any(line.strip() for line in lines[start:]):
        raise DataError(
            "the file ends within a molecule", where=f"{path}, line {start + 1}", hint="fetch it again; it may be truncated"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _typed([row.get(name) for row in rows]) for name in names})


def _molecule(lines: list[str], where: str) -> dict[str, str]:
    """Returns the columns of one molecule."""
    try:
        if "V2000" not in lines[3]:
            raise ValueError(f"its fourth line ends with {lines[3].strip()[-20:]!r}, not V2000")
        atoms, bonds = int(lines[3][:3]), int(lines[3][3:6])
        end = 4 + atoms + bonds
        charges = _charges(lines[end:])
        known = [(line[31:34].strip(), CHARGES.get(int(line[36:39]), 0)) for line in lines[4 : 4 + atoms]]
        if charges:  # these replace the codes in the lines of the atoms
            known = [(element, charges.get(place, 0)) for place, (element, _) in enumerate(known)]
        found = [_bond(line, atoms) for line in lines[4 + atoms : end]]
        if not known or len(known) < atoms:
            raise ValueError(f"{len(known)} atoms")
    except (ValueError, IndexError) as error:
        raise DataError(
            f"not a valid molecule: {error}", where=where, hint="remove it, or convert the file to SDF V2000"
        ) from None
    edges = [[one, other] for one, other, _ in found]
    return {NODES: json.dumps(atom_features(known, found)), EDGES: json.dumps(edges)} | _fields(lines[end:])


def _bond(line: str, atoms: int) -> Bond:
    one, other, kind = int(line[:3]) - 1, int(line[3:6]) - 1, int(line[6:9])
    if not (0 <= one < atoms and 0 <= other < atoms):
        raise ValueError(f"a bond from atom {one + 1} to atom {other + 1}, of {atoms}")
    return one, other, 1.5 if kind == AROMATIC else float(min(kind, 3))


def _charges(lines: list[str]) -> dict[int, int]:
    """Returns the charge of each atom by its position."""
    found: dict[int, int] = {}
    for line in lines:
        if line.startswith("M  CHG"):
            numbers = [int(word) for word in line.split()[3:]]
            found |= {place - 1: charge for place, charge in zip(numbers[::2], numbers[1::2], strict=True)}
    return found


def _fields(lines: list[str]) -> dict[str, str]:
    """Returns the data fields below a molecule: `> <NAME>`, then the value."""
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if line.startswith(">") and "<" in line:
            name = line[line.index("<") + 1 : line.rindex(">")]
            found[name] = ""
        elif name and line.strip():
            found[name] = f"{found[name]}\n{line}".strip()
        else:
            name = ""
    return found


def atom_features(atoms: list[Atom], bonds: list[Bond]) -> list[list[float]]:
    """Returns the features of each atom: one-hot element (`ELEMENTS`, then any other), charge, bonds, shared electron pairs,
    hydrogens that the file leaves out, and whether it is in a ring."""
    count, pairs = [0] * len(atoms), [0.0] * len(atoms)
    for one, other, order in bonds:
        for end in (one, other):
            count[end] += 1
            pairs[end] += order
    rings = in_rings(len(atoms), bonds)
    return [
        [
            *(float(element == known) for known in ELEMENTS),
            float(element not in ELEMENTS),
            float(charge),
            float(count[i]),
            pairs[i],
            _hydrogens(element, charge, pairs[i]),
            float(i in rings),
        ]
        for i, (element, charge) in enumerate(atoms)
    ]


def in_rings(atoms: int, bonds: list[Bond]) -> set[int]:
    """Returns the positions of the atoms in a ring: in a cycle closed by a bond outside of a spanning tree."""
    near: list[list[int]] = [[] for _ in range(atoms)]
    for one, other, _ in bonds:
        near[one].append(other)
        near[other].append(one)
    above, depth = [-1] * atoms, [-1] * atoms
    for root in range(atoms):
        if depth[root] < 0:
            depth[root] = 0
            waiting = deque([root])
            while waiting:
                here = waiting.popleft()
                for there in near[here]:
                    if depth[there] < 0:
                        above[there], depth[there] = here, depth[here] + 1
                        waiting.append(there)
    found: set[int] = set()
    for one, other, _ in bonds:
        if one == other or above[one] == other or above[other] == one:
            continue
        while one != other:
            deeper = one if depth[one] >= depth[other] else other
            found.add(deeper)
            one, other = (above[one], other) if deeper == one else (one, above[other])
        found.add(one)
    return found


def _hydrogens(element: str, charge: int, pairs: float) -> float:
    shift = -abs(charge) if element == "C" else charge
    allowed = [valence + shift for valence in VALENCES.get(element, ()) if valence + shift >= pairs]
    return min(allowed) - pairs if allowed else 0.0


def _typed(values: list[str | None]) -> pa.Array:
    """Converts all values to integers or else to floats, if possible; otherwise keeps text."""
    import pyarrow as pa

    array = pa.array(values, pa.string())
    for kind in (pa.int64(), pa.float64()):
        try:
            return array.cast(kind)
        except pa.ArrowInvalid:
            continue
    return array
