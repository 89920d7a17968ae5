"""Reads a sheet of a workbook: Excel (xlsx, xlsm, xlsb, xls) and OpenDocument (ods)."""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError, near_miss
from headrace.runtime.values import is_missing
from headrace.spreadsheets import cell_text, is_whole, open_workbook, sheet_of

if TYPE_CHECKING:
    import pyarrow as pa


def sheet_names(path: Path) -> list[str]:
    """Returns the names of the sheets in their order.

    Raises:
        DataError: it is not a workbook, or needs too much memory.
    """
    return list(open_workbook(path).sheet_names)


def read_sheet(path: Path, options: ReadOptions) -> pa.Table:
    """Reads one sheet, the first one unless the options name another. The first row that is not empty holds the names.

    Raises:
        DataError: it is not a workbook, the sheet is unknown or empty, or two columns have one name.
    """
    import pyarrow as pa

    read = options.read
    workbook = open_workbook(path)
    names = list(workbook.sheet_names)
    wanted = read.sheet if read and read.sheet is not None else names[0]
    if wanted not in names:
        raise DataError(
            f"the workbook has no sheet {wanted!r}; {near_miss(wanted, names)}",
            where=str(path),
            hint="set data.read.sheet to one of its sheets (headrace new: --sheet)",
        )
    rows = sheet_of(workbook, wanted, path).to_python(skip_empty_area=False)
    rows = rows[read.skip_lines :] if read else rows
    rows = rows[: len(rows) - read.skip_last] if read and read.skip_last else rows
    rows = [row for row in rows if any(value != "" for value in row)]
    if not rows:
        raise DataError(f"the sheet {wanted!r} is empty", where=str(path), hint="name another sheet in data.read.sheet")
    head = _header(rows, options, f"{path}, sheet {wanted}")
    body = rows[options.header + options.skip_rows :]
    columns = {name: _column([row[i] for row in body], options, name) for i, name in head.items()}
    return pa.table(columns)


def _header(rows: list[list[Any]], options: ReadOptions, where: str) -> dict[int, str]:
    """Returns the name of each column that is read, by its position."""
    if not options.header:
        names = options.names or [f"column_{i + 1}" for i in range(len(rows[0]))]
        if len(names) != len(rows[0]):
            raise DataError(
                f"the sheet has {len(rows[0])} columns, and the recipe names {len(names)}",
                where=where,
                hint="list every column in data.columns, or set data.header: true",
            )
        return dict(enumerate(names))
    names = [_name(value) for value in rows[0]]
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice and options.only is None:
        raise DataError(
            f"column {twice[0]!r} appears twice",
            where=where,
            hint="rename one of the two columns, or list the columns to keep in data.columns",
        )
    found: dict[int, str] = {}
    for i, name in enumerate(names):
        if name not in found.values() and (name or options.only is None) and (options.only is None or name in options.only):
            found[i] = name
    return found


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _column(values: list[Any], options: ReadOptions, name: str) -> pa.Array:
    """Returns a column with the type of its cells; cells of different types become texts, written as the column's rule has
    them."""
    import pyarrow as pa

    missing, rule = options.rules.missing or (), options.rules.rules.get(name)
    cells = [None if value == "" or is_missing(value, missing) else value for value in values]
    kinds = {type(value) for value in cells if value is not None}
    if name in options.text or (rule is not None and rule.type == "text"):
        kinds = {str}
    if not kinds:
        return pa.nulls(len(cells))
    if kinds <= {int, float}:
        are_whole = all(v is None or is_whole(v) for v in cells)
        return pa.array([None if v is None else int(v) if are_whole else float(v) for v in cells])
    if kinds == {bool}:
        return pa.array(cells, pa.bool_())
    if kinds <= {datetime.date, datetime.datetime}:
        return pa.array([None if v is None else _moment(v) for v in cells], pa.timestamp("us"))
    decimal = rule.decimal if rule is not None else "."
    return pa.array([None if v is None else cell_text(v, decimal) for v in cells], pa.string())


def _moment(value: datetime.date) -> datetime.datetime:
    return value if isinstance(value, datetime.datetime) else datetime.datetime(value.year, value.month, value.day)
