"""Sheets of workbooks, Excel and OpenDocument. No library of the lock writes workbooks, so the answers come as CSV."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import DataError
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.scoring.columns import columns_of_fields, listed
from headrace.scoring.csv_rows import CsvRows
from headrace.scoring.dialect import HEADER_LINES, Dialect
from headrace.scoring.rows import BadFile, Chunk, Others, in_chunks
from headrace.scoring.values import from_text, from_values
from headrace.spreadsheets import cell_text, is_whole, open_workbook, sheet_of

if TYPE_CHECKING:
    from python_calamine import CalamineSheet

ROW_BYTES = 200
"""What a row takes beside its text."""


class SheetFile(CsvRows):
    """The sheet of a workbook that has the names of the model's fields in one of its first rows."""

    def __init__(self, path: Path, contract: Contract, others: Others) -> None:
        """
        Raises:
            BadFile: it is damaged or too large, or no sheet has the fields.
        """
        super().__init__(contract, others)
        self.encoding, self.dialect = "utf-8", Dialect()
        try:
            self._sheet, self._header, names = _find_sheet(path, contract)
        except DataError as error:
            raise BadFile("bad_workbook", f"{error.message}; {error.hint}") from None
        self.columns = [cell_text(value).strip() for value in self._header[1]]
        self.head = [self.dialect.joined(self.columns) + self.dialect.newline]
        self.fields = columns_of_fields(self.columns, contract, others)
        rest = [name for name in names if name != self._sheet.name]
        self.note(f"sheet {self._sheet.name!r}" + (f", not {listed(rest)}" if rest else "") + "; the answers come as CSV")

    def count(self) -> int:
        return sum(1 for _ in self._records())

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        return in_chunks(self._row(number, cells) for number, cells in itertools.islice(self._records(), skip, None))

    def _row(self, number: int, cells: list[Any]) -> tuple[Any, str, str, int]:
        fields = {field.name: field for field in self.contract.inputs if field.name in self.fields}
        row = {name: _value(cells[self.fields[name]], field) for name, field in fields.items()}
        text = self.dialect.joined([cell_text(value) for value in cells])
        return from_values(row, fields), text, f"row {number}", len(text) + ROW_BYTES

    def _records(self) -> Iterator[tuple[int, list[Any]]]:
        """Yields the number of each row below the header in the sheet, and its cells; empty rows are none."""
        above = (self._sheet.start or (0, 0))[0]
        for place, cells in enumerate(self._sheet.iter_rows()):
            if place > self._header[0] and any(value != "" for value in cells):
                yield above + place + 1, cells


def _find_sheet(path: Path, contract: Contract) -> tuple[CalamineSheet, tuple[int, list[Any]], list[str]]:
    """Returns the sheet with the most of the fields, the place and the cells of its header, and the names of all sheets.

    Raises:
        DataError: the workbook cannot be read.
        BadFile: no sheet has one of the fields.
    """
    wanted = {field.name for field in contract.inputs} | contract.fields_of_columns.keys()
    workbook = open_workbook(path)
    found, most, first = None, 0, list[Any]()
    for name in workbook.sheet_names:
        sheet = sheet_of(workbook, name, path)
        for place, cells in enumerate(itertools.islice(sheet.iter_rows(), HEADER_LINES)):
            first = first or [cell for cell in cells if cell != ""]
            hits = len({cell_text(cell).strip() for cell in cells} & wanted)
            if hits > most:
                found, most = (sheet, (place, cells)), hits
        if most == len(contract.inputs):
            break
    if found is None:
        names = ", ".join(field.name for field in contract.inputs)[:300]
        shown = listed([cell_text(cell) for cell in first])
        has = f"the first row is {shown}" if first else "it is empty"
        message = f"no row at the beginning of a sheet has the names of the model's fields ({names}); {has}"
        raise BadFile("wrong_columns", f"{message}; add a header with these names")
    return *found, list(workbook.sheet_names)


def _value(cell: Any, field: InputField) -> Any:
    """Returns the value of a cell as a request would have it."""
    if cell == "":
        return None
    if isinstance(cell, datetime.date | datetime.time | datetime.timedelta):
        return str(cell) if isinstance(cell, datetime.time | datetime.timedelta) else cell
    if isinstance(cell, str) or field.dtype == "string":
        return from_text(cell_text(cell), field, ".")
    return int(cell) if isinstance(cell, float) and is_whole(cell) else cell
