"""Reads a sheet of a workbook: Excel (xlsx, xlsm, xlsb, xls) and OpenDocument (ods)."""

from __future__ import annotations

import datetime
import functools
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.encoding import first_line
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError, near_miss
from headrace.runtime.values import is_missing

if TYPE_CHECKING:
    import pyarrow as pa

UNPACKED_LIMIT_BYTES = 1 << 30
"""A workbook is read as a whole; one whose parts unpack to more is refused."""
MOST_CELLS = 40_000_000
"""Most cells of the range of a sheet; each takes 24 bytes."""
CELL = re.compile(rb"\sr=[\"']([A-Z]{1,3})([0-9]{1,7})[\"']")
EXACT = 2**53
"""Workbooks hold numbers as floats: whole numbers up to this are exact."""


def sheet_names(path: Path) -> list[str]:
    """Returns the names of the sheets in their order.

    Raises:
        DataError: it is not a workbook, or unpacks to too much.
    """
    return list(_opened(path).sheet_names)


def read_sheet(path: Path, options: ReadOptions) -> pa.Table:
    """Reads one sheet, the first one unless the options name another. The first row that is not empty holds the names.

    Raises:
        DataError: it is not a workbook, the sheet is unknown or empty, or two columns have one name.
    """
    import pyarrow as pa

    read = options.read
    workbook = _opened(path)
    names = list(workbook.sheet_names)
    wanted = read.sheet if read and read.sheet is not None else names[0]
    if wanted not in names:
        raise DataError(
            f"the workbook has no sheet {wanted!r}; {near_miss(wanted, names)}",
            where=str(path),
            hint="set data.read.sheet to one of its sheets (headrace new: --sheet)",
        )
    rows = workbook.get_sheet_by_name(wanted).to_python(skip_empty_area=False)
    rows = rows[read.skip_lines :] if read else rows
    rows = rows[: len(rows) - read.skip_last] if read and read.skip_last else rows
    rows = [row for row in rows if any(value != "" for value in row)]
    if not rows:
        raise DataError(f"the sheet {wanted!r} is empty", where=str(path), hint="name another sheet in data.read.sheet")
    head = _header(rows, options, f"{path}, sheet {wanted}")
    body = rows[options.header + options.skip_rows :]
    columns = {name: _column([row[i] for row in body], options, name) for i, name in head.items()}
    return pa.table(columns)


def _opened(path: Path) -> Any:
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > UNPACKED_LIMIT_BYTES:
                raise DataError(
                    f"the workbook unpacks to {size / 2**30:.1f} GiB, more than {UNPACKED_LIMIT_BYTES >> 30} GiB",
                    where=str(path),
                    hint="export the sheet as CSV",
                )
            _refuse_a_wide_range(path)
        workbook = CalamineWorkbook.from_path(str(path))
    except (CalamineError, zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"not a workbook that can be read: {first_line(error)}",
            where=str(path),
            hint="save it again as xlsx without a password, or export the sheet as CSV",
        ) from None
    if not workbook.sheet_names:
        raise DataError("the workbook has no sheet", where=str(path), hint="save it again with a sheet")
    return workbook


def _refuse_a_wide_range(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        cells = max((_cells(archive, member) for member in archive.infolist()), default=0)
    if cells > MOST_CELLS:
        raise DataError(
            f"a sheet spans {cells:,} cells, more than {MOST_CELLS:,}",
            where=str(path),
            hint="remove the cells far to the right or far below, or export the sheet as CSV",
        )


def _cells(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Returns how many cells the range of a sheet has: two cells far apart make a workbook of 2 KB one of gigabytes."""
    if not re.fullmatch(r"xl/worksheets/[^/]+\.xml", member.filename):
        return 0
    columns = rows = 0
    with archive.open(member) as file:
        rest = b""
        while piece := file.read(1 << 20):
            for column, row in CELL.findall(rest + piece):
                rows = max(rows, int(row))
                columns = max(columns, functools.reduce(lambda number, letter: number * 26 + letter - 64, column, 0))
            rest = piece[-32:]
    return rows * columns


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
        is_whole = all(v is None or (float(v).is_integer() and abs(v) <= EXACT) for v in cells)
        return pa.array([None if v is None else int(v) if is_whole else float(v) for v in cells])
    if kinds == {bool}:
        return pa.array(cells, pa.bool_())
    if kinds <= {datetime.date, datetime.datetime}:
        return pa.array([None if v is None else _moment(v) for v in cells], pa.timestamp("us"))
    decimal = rule.decimal if rule is not None else "."
    return pa.array([None if v is None else _text(v, decimal) for v in cells], pa.string())


def _moment(value: datetime.date) -> datetime.datetime:
    return value if isinstance(value, datetime.datetime) else datetime.datetime(value.year, value.month, value.day)


def _text(value: Any, decimal: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) <= EXACT else str(value).replace(".", decimal)
    return str(value)
