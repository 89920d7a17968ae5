"""CSV in any dialect. Rows are kept as they are in the file, and answers are added at their end."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.scoring.columns import columns_of_fields
from headrace.scoring.content import encoding_of, unpacked
from headrace.scoring.csv_rows import CsvRows
from headrace.scoring.dialect import HEADER_LINES, SAMPLE_ROWS, dialect_of
from headrace.scoring.rows import MAX_ROW_BYTES, BadFile, Chunk, Others, bad_row, in_chunks
from headrace.scoring.values import from_text

csv.field_size_limit(MAX_ROW_BYTES)
SAMPLE_CHARACTERS = 4 * 1024 * 1024
"""Of the first lines, which tell the dialect, no more than this is read."""
ROW_BYTES = 200
"""What a row takes beside its text."""


class DelimitedFile(CsvRows):
    """A CSV file; `member` is its name in a zip."""

    def __init__(self, path: Path, contract: Contract, others: Others, member: str | None = None) -> None:
        super().__init__(contract, others)
        self._path, self._member = path, member
        self.encoding = encoding_of(path, member)
        self.dialect = dialect_of(self._first_lines(HEADER_LINES + SAMPLE_ROWS), contract)
        self.head, self.columns = self._header()
        self.fields = columns_of_fields(self.columns, contract, others)
        self.note(f"CSV {self.dialect.describe()}, {self.encoding}")

    def count(self) -> int:
        return sum(1 for _ in self._records())

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        fields = [(field, self.fields[field.name]) for field in self.contract.inputs if field.name in self.fields]
        return in_chunks(
            (self._row(cells, fields), self._padded(cells, text), f"line {line}", len(text) + ROW_BYTES)
            for line, cells, text in itertools.islice(self._records(), skip, None)
        )

    def _row(self, cells: list[str], fields: list[tuple[InputField, int]]) -> Any:
        if len(cells) > len(self.columns) and any(cell.strip() for cell in cells[len(self.columns) :]):
            return bad_row("wrong_columns", f"the row has {len(cells)} cells, and the header {len(self.columns)} columns")
        if len(cells) < len(self.columns) and max(place for _, place in fields) >= len(cells):
            return bad_row("wrong_columns", f"the row has {len(cells)} cells, and the header {len(self.columns)} columns")
        return {field.name: from_text(cells[place], field, self.dialect.decimal) for field, place in fields}

    def _padded(self, cells: list[str], text: str) -> str:
        """Returns the text of a row with as many cells as the header, so that answers are in their own columns."""
        missing = len(self.columns) - len(cells)
        if missing < 0:
            return self.dialect.joined(cells[: len(self.columns)])
        return text + self.dialect.separator * missing

    def _header(self) -> tuple[list[str], list[str]]:
        """Returns the lines down to the header as they are, and the names of the columns."""
        head = self._first_lines(self.dialect.header + 1)
        return head, next(self.dialect.reader([head[-1]]))

    def _first_lines(self, most: int) -> list[str]:
        found: list[str] = []
        size = 0
        with self._text() as handle:
            lines = _Lines(handle)
            while len(found) < most and size < SAMPLE_CHARACTERS:
                lines.begin()
                if (line := next(lines, None)) is None:
                    break
                found.append(line)
                size += len(line)
        return found

    def _records(self) -> Iterator[tuple[int, list[str], str]]:
        """Yields for each row the number of its first line, its cells, and its text; blank lines are not rows."""
        with self._text() as handle:
            lines = _Lines(handle)
            for _ in range(self.dialect.header + 1):
                next(lines)
            rows = self.dialect.reader(lines)
            while True:
                lines.begin()
                try:
                    cells = next(rows, None)
                except csv.Error as error:
                    raise BadFile("bad_csv", f"line {lines.first}: {error}; a quote may not be closed") from None
                if cells is None:
                    return
                text = lines.text()
                is_cut = lines.taken > 1 or len(cells) < len(self.columns)
                if lines.has_ended and is_cut and text.count(self.dialect.quote) % 2:
                    raise BadFile("bad_csv", f"line {lines.first}: the file ends within quotes that begin in this row")
                if len(cells) > 1 or text.strip():
                    yield lines.first, cells, text

    @contextmanager
    def _text(self) -> Iterator[TextIO]:
        with unpacked(self._path, self._member) as raw:
            try:
                yield io.TextIOWrapper(raw, self.encoding, newline="")
            except UnicodeDecodeError as error:
                raise BadFile(
                    "bad_encoding", f"the file is not {self.encoding} text: {error.reason}; save it as UTF-8"
                ) from None


class _Lines:
    """Lines of a text, with those that the reader has taken for its current row."""

    def __init__(self, handle: TextIO) -> None:
        self._handle, self._held, self._size = handle, [""], 0
        self._number, self.first = 0, 0

    def begin(self) -> None:
        """Begins a row."""
        self._held, self._size, self.first = [], 0, self._number + 1

    @property
    def taken(self) -> int:
        """Lines of the current row."""
        return len(self._held)

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows the current row."""
        here = self._held[-1] if self._held else ""
        return not here.endswith(("\n", "\r")) or self._is_last

    def text(self) -> str:
        """Returns the current row as it is, without the end of its last line."""
        return "".join(self._held).rstrip("\r\n")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._handle.readline(MAX_ROW_BYTES + 1)
        if not line:
            self._is_last = True
            raise StopIteration
        self._number += 1
        self._size += len(line)
        if self._size > MAX_ROW_BYTES:
            message = f"line {self.first or self._number}: a row of more than {MAX_ROW_BYTES:,} characters"
            raise BadFile("too_large", f"{message}; a quote may not be closed")
        self._held.append(line)
        return line

    _is_last = False
