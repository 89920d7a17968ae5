"""Reads JSON lines in bounded memory: twice, first for the types of the columns, then for the rows."""

from __future__ import annotations

import json as text_json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from headrace.data.formats.opening import Utf8Stream, open_unpacked
from headrace.data.formats.options import ReadOptions
from headrace.data.formats.streams import BLOCK_BYTES, TableStream
from headrace.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

FAULTS_SHOWN = 10
LINE_LIMIT_BYTES = 64 << 20
"""A longer line is refused: it has to fit into memory several times."""


def stream_json_lines(path: Path, options: ReadOptions) -> TableStream:
    """Reads the lines once for their types, and returns them as a stream.

    Raises:
        DataError: a line is not a JSON object, or a field has values of different types.
    """
    schema, rows = None, 0
    for block, line in _blocks(path, options):
        found = _parsed(block, None, path, line)
        schema = found.schema if schema is None else _unified(schema, found.schema, path, line)
        rows += found.num_rows
    if schema is None:
        raise DataError("the file has no rows", where=str(path), hint="fetch or export it again")
    import pyarrow as pa

    wanted = pa.schema([field for field in schema if options.only is None or field.name in options.only])
    return TableStream(wanted, rows, lambda: (_parsed(block, wanted, path, line) for block, line in _blocks(path, options)))


def _blocks(path: Path, options: ReadOptions) -> Iterator[tuple[bytes, int]]:
    """Yields blocks of whole lines, each with the number of its first line."""
    rest, line = b"", 1 + (options.read.skip_lines if options.read else 0)
    with Utf8Stream(open_unpacked(path), path, options) as stream:
        while piece := stream.read(BLOCK_BYTES):
            at = piece.rfind(b"\n") + 1
            if not at:
                rest += piece
                if len(rest) > LINE_LIMIT_BYTES:
                    raise DataError(
                        f"a line is longer than {LINE_LIMIT_BYTES >> 20} MB",
                        where=f"{path}, line {line}",
                        hint="write one JSON object per line (for a JSON array: jq -c '.[]' FILE > FILE.jsonl)",
                    )
                continue
            block, rest = rest + piece[:at], piece[at:]
            if block.strip():
                yield block, line
            line += block.count(b"\n")
    if rest.strip():
        yield rest, line


def _parsed(block: bytes, schema: pa.Schema | None, path: Path, line: int) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json

    parse = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore")
    try:
        table = json.read_json(
            pa.BufferReader(block), read_options=json.ReadOptions(block_size=len(block) + 1), parse_options=parse
        )
        return table if schema is None else table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        _explain(block, path, line, error)


def _unified(schema: pa.Schema, other: pa.Schema, path: Path, line: int) -> pa.Schema:
    import pyarrow as pa

    fields = []
    for field in schema:
        kinds = {field.type, other.field(field.name).type if field.name in other.names else field.type}
        if pa.string() in kinds and any(pa.types.is_timestamp(kind) for kind in kinds):
            field = pa.field(field.name, pa.string())  # a text that looks like a time in some rows only
            if field.name in other.names:
                other = other.set(other.names.index(field.name), field)
        fields.append(field)
    try:
        return pa.unify_schemas([pa.schema(fields), other], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"a field has values of different types: {first_line(error)}",
            where=f"{path}, from line {line}",
            hint="write each field with one type in all lines",
        ) from None


def _explain(block: bytes, path: Path, line: int, error: Exception) -> NoReturn:
    wrong: list[tuple[int, str]] = []
    for i, text in enumerate(block.split(b"\n")):
        if text.strip() and not _is_object(text):
            wrong.append((line + i, text[:60].decode(errors="replace")))
    if not wrong:
        raise DataError(
            f"not valid JSON lines: {first_line(error)}",
            where=f"{path}, from line {line}",
            hint="write one JSON object per line, each field with one type in all lines",
        ) from None
    shown = ", ".join(f"line {number}: {text!r}" for number, text in wrong[:FAULTS_SHOWN])
    more = f" and {len(wrong) - FAULTS_SHOWN:,} more" if len(wrong) > FAULTS_SHOWN else ""
    raise DataError(
        f"not one JSON object per line: {shown}{more}",
        where=f"{path}, line {wrong[0][0]}",
        hint="write one JSON object per line (for a JSON array: jq -c '.[]' FILE > FILE.jsonl)",
    ) from None


def _is_object(text: bytes) -> bool:
    try:
        found: Any = text_json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict)
