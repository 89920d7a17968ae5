"""Reads the rows of a batch's file in parts, and writes its result as Parquet. pyarrow is imported for Parquet only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from headrace.client.errors import InvalidInput
from headrace.client.requests import to_json_value
from headrace.errors import near_miss
from headrace.files import atomic_write
from headrace.runtime.contract import Contract
from headrace.services.api.batch_store import JSON_LINES, PART_ROWS, Part

MAX_LINE_BYTES = 16 * 1024 * 1024


class BadFile(Exception):
    """The file cannot be processed at all; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class BadRow(dict[str, Any]):
    """A row that cannot be sent to a model: its error instead of its fields."""


def bad_row(code: str, message: str) -> BadRow:
    return BadRow(code=code, message=message)


def count_rows(path: Path, media_type: str, contract: Contract) -> int:
    """Counts the rows of a file.

    Raises:
        BadFile: not Parquet, or with columns that the model does not have.
    """
    if media_type == JSON_LINES:
        return sum(1 for _ in _lines(path))
    file = _parquet(path)
    _check_columns(file.schema_arrow.names, contract)
    return int(file.metadata.num_rows)


def parts_from(path: Path, media_type: str, skip: int) -> Iterator[list[Any]]:
    """Yields the rows from row `skip` on, 1,000 at a time; each is a dictionary of fields or a `BadRow`.

    Raises:
        BadFile: the file is damaged; possibly after some parts.
    """
    rows = _json_rows(path, skip) if media_type == JSON_LINES else _parquet_rows(path, skip)
    while part := list(islice(rows, PART_ROWS)):
        yield part


# -- JSON lines


def _lines(path: Path) -> Iterator[bytes]:
    """Yields the lines that are not blank; of a line that is too long only the beginning, to bound memory."""
    with path.open("rb") as handle:
        while line := handle.readline(MAX_LINE_BYTES + 1):
            end = line
            while len(line) > MAX_LINE_BYTES and end and not end.endswith(b"\n"):
                end = handle.readline(MAX_LINE_BYTES)
            if line.strip():
                yield line


def _json_rows(path: Path, skip: int) -> Iterator[Any]:
    return map(_json_row, islice(_lines(path), skip, None))


def _json_row(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        return bad_row("too_large", f"the line exceeds {MAX_LINE_BYTES} bytes")
    try:
        return msgspec.json.decode(line)
    except RecursionError:
        return bad_row("bad_json", "the JSON is nested too deeply")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return bad_row("bad_json", f"the line is not valid JSON: {error}")


# -- Parquet


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadFile("bad_parquet", f"the file is not readable Parquet: {_first_line(error)}") from None


def _check_columns(columns: list[str], contract: Contract) -> None:
    names = [field.name for field in contract.inputs]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise BadFile("wrong_columns", f"the column {twice[0]!r} appears twice")
    for name in columns:
        if name not in names:
            raise BadFile("wrong_columns", f"the model has no field {name[:100]!r}; {near_miss(name, names)}")
    for field in contract.inputs:
        if field.name not in columns and not field.nullable and field.default is None:
            raise BadFile("wrong_columns", f"the column {field.name!r} is missing; the file has {', '.join(columns)[:500]}")


def _parquet_rows(path: Path, skip: int) -> Iterator[Any]:
    """Yields rows from row `skip` on, without reading the row groups before it."""
    import pyarrow as pa

    file = _parquet(path)
    groups = list(range(file.metadata.num_row_groups))
    while groups and file.metadata.row_group(groups[0]).num_rows <= skip:
        skip -= file.metadata.row_group(groups.pop(0)).num_rows
    try:
        for batch in file.iter_batches(batch_size=PART_ROWS, row_groups=groups):
            for row in batch.to_pylist():
                if skip > 0:
                    skip -= 1
                    continue
                yield _plain_row(row)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise BadFile("bad_parquet", f"the rest of the file cannot be read: {_first_line(error)}") from None


def _plain_row(row: dict[str, Any]) -> Any:
    try:
        return to_json_value(row)
    except InvalidInput as error:
        return bad_row("contract_violation", error.message)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def write_parquet(parts: list[Part], contract: Contract, path: Path) -> None:
    """Writes the answers of all parts to one file atomically: `row`, the columns of the answer, `error`, `id` and `id_row`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _answer_columns(contract)
    schema = pa.schema([("row", pa.int64()), *columns, ("error", pa.string()), ("id", pa.string()), ("id_row", pa.int64())])
    with atomic_write(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        for part in parts:
            lines = [json.loads(line) for line in part.path.read_bytes().splitlines()]
            writer.write_table(pa.Table.from_pylist([_flat(line, contract) for line in lines], schema=schema))


def _answer_columns(contract: Contract) -> list[tuple[str, Any]]:
    import pyarrow as pa

    if contract.output == "probabilities":
        are_numbers = all(isinstance(label, int) for label in contract.labels or [])
        return [("label", pa.int64() if are_numbers else pa.string()), ("probabilities", pa.map_(pa.string(), pa.float64()))]
    if contract.output == "value":
        return [(_value_name(contract), pa.float64()), ("interval", pa.list_(pa.float64()))]
    return [("prediction", pa.string())]


def _flat(line: dict[str, Any], contract: Contract) -> dict[str, Any]:
    answer, error = line.get("prediction"), line.get("error")
    flat = {name: line.get(name) for name in ("row", "id", "id_row")}
    flat["error"] = f"{error['code']}: {error['message']}" if error else None
    if answer is None:
        return flat
    if contract.output == "probabilities":
        return {**flat, "label": answer["label"], "probabilities": list(answer["probabilities"].items())}
    if contract.output == "value":
        return {**flat, _value_name(contract): answer[contract.target], "interval": answer.get("interval")}
    return {**flat, "prediction": json.dumps(answer, ensure_ascii=False)}


def _value_name(contract: Contract) -> str:
    """The name of the target, unless the result has another column of that name."""
    return "value" if contract.target in ("row", "error", "id", "id_row", "interval") else contract.target
