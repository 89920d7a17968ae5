"""CSV in any dialect. Rows are kept as they are in the file, and answers are added at their end."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.scoring.answers import Column, answer_columns, clash_note
from headrace.scoring.columns import columns_of_fields
from headrace.scoring.content import encoding_of, unpacked
from headrace.scoring.dialect import HEADER_LINES, SAMPLE_ROWS, dialect_of
from headrace.scoring.rows import (
    CSV,
    MAX_ROW_BYTES,
    PART_BYTES,
    PART_ROWS,
    AnswerWriter,
    BadFile,
    Chunk,
    Line,
    Others,
    RowsFile,
    bad_row,
)
from headrace.scoring.values import from_text

csv.field_size_limit(MAX_ROW_BYTES)
SAMPLE_CHARACTERS = 4 * 1024 * 1024
"""Of the first lines, which tell the dialect, no more than this is read."""
ROW_BYTES = 200
"""What a row takes beside its text."""


class DelimitedFile(RowsFile):
    """A CSV file; `member` is its name in a zip."""

    media_type = CSV

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
        values: list[Any] = []
        sources: list[str] = []
        places: list[str] = []
        size = 0
        for number, (line, cells, text) in enumerate(self._records()):
            if number < skip:
                continue
            values.append(self._row(cells, fields))
            sources.append(self._padded(cells, text))
            places.append(f"line {line}")
            size += len(text) + ROW_BYTES
            if len(values) >= PART_ROWS or size >= PART_BYTES:
                yield Chunk(values, sources, places)
                values, sources, places, size = [], [], [], 0
        if values:
            yield Chunk(values, sources, places)

    def writer(self, handle: BinaryIO) -> AnswerWriter:
        return _CsvWriter(self, handle)

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


class _CsvWriter(AnswerWriter):
    """Writes rows in the file's own dialect and encoding."""

    def __init__(self, file: DelimitedFile, handle: BinaryIO) -> None:
        self._file = file
        keeps = file.others == "keep"
        taken = [name.strip("\ufeff \t") for name in file.columns] if keeps else []
        self._columns = answer_columns(file.contract, taken, () if keeps else ("row",))
        if keeps:
            file.note(clash_note(self._columns[0].name))
        self._text = io.TextIOWrapper(cast("Any", _Unclosed(handle)), file.encoding, errors="backslashreplace", newline="")
        names = file.dialect.joined([column.name for column in self._columns])
        if keeps:
            for line in file.head[:-1]:
                self._text.write(line)
            self._put(file.head[-1].rstrip("\r\n"), names)
        else:
            self._put(None, names)

    def write(self, chunk: Chunk, lines: list[Line]) -> None:
        keeps, dialect, columns = self._file.others == "keep", self._file.dialect, self._columns
        rows = []
        for source, line in zip(chunk.sources, lines, strict=True):
            cells = dialect.joined([self._cell(column, line) for column in columns])
            rows.append(f"{source}{dialect.separator}{cells}{dialect.newline}" if keeps else cells + dialect.newline)
        self._text.write("".join(rows))
        self._text.flush()

    def _put(self, source: str | None, cells: str) -> None:
        before = "" if source is None else source + self._file.dialect.separator
        self._text.write(before + cells + self._file.dialect.newline)

    def _cell(self, column: Column, line: Line) -> str:
        if (value := column.value(line)) is None:
            return ""
        if column.kind != "number":
            return str(value)
        return repr(float(value)).replace(".", self._file.dialect.decimal)


class _Unclosed(io.BufferedIOBase):
    """A binary file that a text wrapper around it does not close."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._handle.write(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
