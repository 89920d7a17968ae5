"""Results in CSV: the rows of a file as they are, with the answers at their end."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, cast

from headrace.scoring.answers import Column, answer_columns, clash_note
from headrace.scoring.dialect import Dialect
from headrace.scoring.rows import CSV, AnswerWriter, Chunk, Line, RowsFile


class CsvRows(RowsFile):
    """A file whose answers come as CSV; the sources of its rows are their texts, with as many cells as the header."""

    media_type = CSV
    encoding: str
    dialect: Dialect
    head: list[str]
    """Lines down to the header."""
    columns: list[str]
    """Names of the columns."""

    def writer(self, handle: BinaryIO) -> AnswerWriter:
        return _CsvWriter(self, handle)


class _CsvWriter(AnswerWriter):
    """Writes rows in the file's own dialect and encoding."""

    def __init__(self, file: CsvRows, handle: BinaryIO) -> None:
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
