"""Which columns of a file are the fields of a model, and what happens to the others."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from headrace.errors import near_miss
from headrace.runtime.contract import Contract
from headrace.scoring.rows import BadFile, Others

INDEX = re.compile(r"__index_level_[0-9]+__|Unnamed: [0-9]+|\s*")
"""Names that pandas gives to an index without a name, in Parquet and CSV."""
MOST_PLACES = 10
"""Places that a message lists; it counts the others."""
NEARLY = 0.8
"""How similar the name of another column is to an optional field that is missing, to be taken for a mistake."""


def columns_of_fields(columns: Sequence[str], contract: Contract, others: Others) -> dict[str, int]:
    """Returns the position of each field's column, by its name or that of the training data; optional fields may have none.
    Blanks around names do not matter.

    Raises:
        BadFile: a field appears twice or is missing, or another column is there and `others` is `refuse`.
    """
    places = defaultdict(list)
    for place, column in enumerate(columns):
        places[column.strip("\ufeff \t")].append(place)
    names = [field.name for field in contract.inputs]
    for column, name in contract.fields_of_columns.items():
        if column in places and name not in places:
            places[name] = places.pop(column)
    for name in sorted(places):
        if len(places[name]) > 1 and (name in names or (others == "refuse" and name)):
            at = " and ".join(str(place + 1) for place in places[name][:MOST_PLACES])
            raise BadFile(
                "wrong_columns", f"the column {name[:100]!r} appears twice (columns {at}); rename or remove one of them"
            )
    unknown = [name for name in places if name not in names and not INDEX.fullmatch(name)]
    if unknown and others == "refuse":
        raise BadFile("wrong_columns", _unknown(unknown, contract))
    found = {name: places[name][0] for name in names if name in places}
    missing = [f.name for f in contract.inputs if f.name not in found and not f.nullable and f.default is None]
    if missing:
        raise BadFile("wrong_columns", _missing(missing, list(columns)))
    if near := nearly(tuple(name for name in names if name not in found), tuple(unknown)):
        name, column = near
        message = f"the file has no column {name!r}, but {column[:100]!r}; rename that, or add an empty column {name!r}"
        raise BadFile("wrong_columns", message)
    return found


@lru_cache(maxsize=256)
def nearly(missing: tuple[str, ...], unknown: tuple[str, ...]) -> tuple[str, str] | None:
    """Returns the first optional field that is missing while another column nearly has its name, and that column."""
    found = ((name, difflib.get_close_matches(name, unknown, n=1, cutoff=NEARLY)) for name in missing)
    return next(((name, close[0]) for name, close in found if close), None)


def listed(names: Sequence[str], most: int = MOST_PLACES) -> str:
    """Returns the first names in quotes, and the number of the others."""
    shown = ", ".join(repr(name[:100]) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _unknown(unknown: list[str], contract: Contract) -> str:
    first, names = unknown[0], [field.name for field in contract.inputs]
    near = "it is what the model predicts" if first in (contract.targets or [contract.target]) else near_miss(first, names)
    others = "" if len(unknown) == 1 else f" (and none of {listed(unknown[1:])})"
    keep = "" if near.startswith("did you mean") else "submit the file with columns=keep to get other columns back, or "
    return f"the model has no field {first[:100]!r}{others}; {near}; {keep}leave the column out of the file"


def _missing(missing: list[str], columns: list[str]) -> str:
    what = f"the column {missing[0]!r} is" if len(missing) == 1 else f"the columns {listed(missing)} are"
    close = difflib.get_close_matches(missing[0], columns, n=1)
    near = f"; did you mean {close[0][:100]!r}?" if close else ""
    return f"{what} missing{near}; the file has {', '.join(columns)[:500]}"
