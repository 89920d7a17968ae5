"""Rows of a file to predict, and what is wrong with a row or with the file as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from headrace.errors import DataError
from headrace.runtime.contract import Contract

PARQUET, JSON_LINES, CSV, ZIP = "application/vnd.apache.parquet", "application/x-ndjson", "text/csv", "application/zip"
PART_ROWS = 1000
"""Most rows that are read together."""
PART_BYTES = 16 * 1024 * 1024
"""Rows are read together up to this size: a row may be large."""
MAX_ROW_BYTES = 16 * 1024 * 1024
"""Largest row of a text file."""
Others = Literal["refuse", "ignore", "keep"]
"""What happens to columns that the model does not know: the file is refused, or they are left out of the result, or they are
in the result beside the answers."""
Line = dict[str, Any]
"""An answer: `{"row", "prediction", "id", "id_row"}`, also with `warnings` about values that training has not seen; or
`{"row", "error": {"code", "message", ...}}`."""


class BadFile(Exception):
    """The file cannot be processed at all; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def as_data_error(error: BadFile, path: Path) -> DataError:
    """Returns the error with the name of the file, and how to correct it."""
    what, _, how = error.message.partition("; ")
    return DataError(what, where=str(path), hint=how or "correct the file, or export it again")


class BadRow(dict[str, Any]):
    """A row that cannot be sent to a model: its error instead of its fields."""


def bad_row(code: str, message: str) -> BadRow:
    return BadRow(code=code, message=message)


@dataclass(frozen=True)
class Chunk:
    """Rows that are read together: at most 1,000, and fewer if they are large."""

    values: list[Any]
    """For each row the fields of the model, or a `BadRow`."""
    sources: Any
    """The same rows as they are in the file, for the result."""
    places: list[str] = field(default_factory=list)
    """Where each row is in the file, for messages, for example "line 5"; may be empty."""


def in_chunks(rows: Iterable[tuple[Any, Any, str, int]]) -> Iterator[Chunk]:
    """Yields chunks of rows, each of which is given as its value, its source, its place, and its size in bytes."""
    values, sources, places, size = list[Any](), list[Any](), list[str](), 0
    for value, source, place, row_bytes in rows:
        values.append(value)
        sources.append(source)
        places.append(place)
        size += row_bytes
        if len(values) >= PART_ROWS or size >= PART_BYTES:
            yield Chunk(values, sources, places)
            values, sources, places, size = [], [], [], 0
    if values:
        yield Chunk(values, sources, places)


class AnswerWriter(ABC):
    """Writes answers in the format of the file, and beside its rows if other columns are kept."""

    @abstractmethod
    def write(self, chunk: Chunk, lines: list[Line]) -> None:
        """Writes the answers to the rows of `chunk`, one line each."""

    def close(self) -> None:  # noqa: B027  (text formats have no end)
        """Writes the end of the file."""


class RowsFile(ABC):
    """A file of rows of a known format."""

    media_type: str
    """Of the file's content; the result has the same."""

    def __init__(self, contract: Contract, others: Others) -> None:
        self.contract, self.others = contract, others
        self.notes: list[str] = []
        """How the file was read, and what was decided, for people."""

    def note(self, text: str) -> None:
        """Adds a note once, unless it is empty."""
        if text and text not in self.notes:
            self.notes.append(text)

    @abstractmethod
    def count(self) -> int:
        """Counts the rows.

        Raises:
            BadFile: the file is damaged.
        """

    @abstractmethod
    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        """Yields the rows from row `skip` on.

        Raises:
            BadFile: the file is damaged; possibly after some rows.
        """

    @abstractmethod
    def writer(self, handle: BinaryIO) -> AnswerWriter:
        """Begins a result in the format of the file."""
