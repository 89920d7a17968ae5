"""JSON lines. Lines are kept as they are in the file, and answers are added at their end."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from headrace.runtime.contract import Contract
from headrace.scoring.answers import clash_note, free_ending
from headrace.scoring.columns import nearly
from headrace.scoring.content import unpacked
from headrace.scoring.rows import (
    JSON_LINES,
    MAX_ROW_BYTES,
    AnswerWriter,
    BadRow,
    Chunk,
    Line,
    Others,
    RowsFile,
    bad_row,
    in_chunks,
)
from headrace.scoring.values import from_values

NAMES = ("prediction", "prediction_error", "prediction_id", "prediction_row", "prediction_warnings")
MAX_NAMES = 100_000
"""Names of other fields that are compared with those of the answers."""
MAX_SHOWN = 1000
"""Characters of a line that is not an object, in the result."""
ROW_BYTES = 500
"""What a row takes beside its text."""


class JsonLinesFile(RowsFile):
    """A file with a JSON object in each line; `member` is its name in a zip."""

    media_type = JSON_LINES

    def __init__(self, path: Path, contract: Contract, others: Others, member: str | None = None) -> None:
        super().__init__(contract, others)
        self._path, self._member = path, member
        self._fields = {field.name: field for field in contract.inputs}
        self._columns = contract.fields_of_columns

    def count(self) -> int:
        return sum(1 for _ in self._lines())

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        return in_chunks(
            (self._row(line), line[:MAX_ROW_BYTES], f"line {number}", len(line) + ROW_BYTES)
            for number, line in itertools.islice(self._lines(), skip, None)
        )

    def writer(self, handle: BinaryIO) -> AnswerWriter:
        ending = free_ending(NAMES, self._names) if self.others == "keep" else ""
        self.note(clash_note(NAMES[0] + ending))
        return _JsonWriter(handle, self.others == "keep", ending)

    def _row(self, line: bytes) -> Any:
        row = _parsed(line)
        if isinstance(row, BadRow) or not isinstance(row, dict):
            return row
        for column in self._columns.keys() & row.keys():
            row.setdefault(self._columns[column], row[column])
            del row[column]
        if self.others != "refuse":
            missing = tuple(name for name in self._fields if name not in row)
            if missing and (near := nearly(missing, tuple(name for name in row if name not in self._fields))):
                return bad_row("wrong_columns", f"it has no field {near[0]!r}, but {near[1][:100]!r}; rename that")
            row = {name: value for name, value in row.items() if name in self._fields}
        return from_values(row, self._fields)

    @cached_property
    def _names(self) -> set[str]:
        """Names of all fields in the file."""
        found: set[str] = set()
        decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
        for _, line in self._lines():
            try:
                found.update(decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            if len(found) > MAX_NAMES:
                break
        return found

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yields the lines that are not blank, with their numbers; of one that is too long only the beginning."""
        with unpacked(self._path, self._member) as handle:
            number = 0
            while line := handle.readline(MAX_ROW_BYTES + 1):
                end = line
                while len(line) > MAX_ROW_BYTES and end and not end.endswith(b"\n"):
                    end = handle.readline(MAX_ROW_BYTES)
                number += 1
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, line


def _parsed(line: bytes) -> Any:
    if len(line) > MAX_ROW_BYTES:
        return bad_row("too_large", f"the line exceeds {MAX_ROW_BYTES} bytes")
    try:
        return msgspec.json.decode(line)
    except RecursionError:
        return bad_row("bad_json", "the JSON is nested too deeply")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return bad_row("bad_json", f"the line is not valid JSON: {error}")


class _JsonWriter(AnswerWriter):
    def __init__(self, handle: BinaryIO, keeps: bool, ending: str) -> None:
        self._handle, self._keeps, self._ending = handle, keeps, ending

    def write(self, chunk: Chunk, lines: list[Line]) -> None:
        for source, line in zip(chunk.sources, lines, strict=True):
            answer = {name + self._ending: value for name, value in _answer(line).items()}
            if self._keeps and "warnings" in line:
                answer["prediction_warnings" + self._ending] = line["warnings"]
            if self._keeps:
                self._handle.write(_beside(source, answer))
            else:
                self._handle.write(_encoded({"row": line["row"], **answer}) + b"\n")


def _answer(line: Line) -> dict[str, Any]:
    if "error" in line:
        return {"prediction": None, "prediction_error": line["error"]}
    return {"prediction": line["prediction"], "prediction_id": line["id"], "prediction_row": line["id_row"]}


def _beside(source: bytes, answer: dict[str, Any]) -> bytes:
    """Returns the object of a line with further fields, otherwise byte for byte as it was."""
    text = source.strip()
    if not (text.startswith(b"{") and text.endswith(b"}")) or isinstance(_parsed(source), BadRow):
        return _encoded({"line": text.decode(errors="replace")[:MAX_SHOWN], **answer}) + b"\n"
    comma = b"" if text[1:-1].strip() == b"" else b", "
    return text[:-1].rstrip() + comma + _encoded(answer)[1:] + b"\n"


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)
