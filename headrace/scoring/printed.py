"""Rows of Parquet with their answers as JSON lines, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from headrace.client.errors import InvalidInput
from headrace.client.requests import to_json_value
from headrace.scoring.answers import answer_columns
from headrace.scoring.rows import AnswerWriter, Chunk, Line, RowsFile

if TYPE_CHECKING:
    import pyarrow as pa


class JsonPrinter(AnswerWriter):
    """Prints a line of JSON for each row of a Parquet file: its columns if they are kept, and the answer."""

    def __init__(self, handle: BinaryIO, file: RowsFile) -> None:
        self._handle, self._file = handle, file

    def write(self, chunk: Chunk, lines: list[Line]) -> None:
        batch: pa.RecordBatch = chunk.sources
        keeps = self._file.others == "keep"
        columns = answer_columns(self._file.contract, batch.schema.names if keeps else (), () if keeps else ("row",))
        rows = batch.to_pylist() if keeps else [{} for _ in lines]
        for row, line in zip(rows, lines, strict=True):
            values = {name: _shown(value) for name, value in row.items()}
            answers = {column.name: value for column in columns if (value := column.value(line)) is not None}
            self._handle.write(msgspec.json.encode(values | answers) + b"\n")
        self._handle.flush()


def _shown(value: Any) -> Any:
    try:
        return to_json_value(value)
    except InvalidInput:  # infinity, a duration
        return str(value)
