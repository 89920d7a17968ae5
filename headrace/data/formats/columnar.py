"""Reads Parquet and Arrow files (Feather version 2) block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.options import ReadOptions
from headrace.data.formats.streams import TableStream
from headrace.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_ROWS = 2**16
BLOCK_BYTES = 64 << 20
"""About so much memory has a block of many columns."""


def stream_parquet(path: Path, options: ReadOptions) -> TableStream:
    """
    Raises:
        DataError: it is not a complete Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow.remove_metadata(), file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise not_whole(path, error) from None
    places = _wanted(schema, options)

    def blocks() -> Iterator[pa.Table]:
        try:
            with pq.ParquetFile(path) as file:
                # Columns of one name cannot be distinguished by it, so then all are read.
                names = None if len(set(schema.names)) < len(schema.names) else [schema.names[i] for i in places]
                rows = max(64, min(BLOCK_ROWS, BLOCK_BYTES // (8 * max(1, len(places)))))
                for batch in file.iter_batches(rows, columns=names):
                    table = pa.Table.from_batches([batch])
                    yield (table.select(places) if names is None else table.select(names)).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise not_whole(path, error) from None

    return TableStream(pa.schema([schema.field(i) for i in places]), rows, blocks)


def stream_arrow(path: Path, options: ReadOptions) -> TableStream:
    """
    Raises:
        DataError: it is not an Arrow file, neither of the file nor of the stream format.
    """
    import pyarrow as pa

    rows, schema = 0, None
    for table in _arrow_blocks(path):
        schema, rows = table.schema, rows + table.num_rows
    if schema is None:
        raise DataError("the file has no rows", where=str(path), hint="fetch or export it again")
    places = _wanted(schema, options)
    return TableStream(
        pa.schema([schema.field(i) for i in places]), rows, lambda: (table.select(places) for table in _arrow_blocks(path))
    )


def _arrow_blocks(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                batches: Any = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"not a complete Arrow file: {first_line(error)}",
            where=str(path),
            hint="fetch or export it again; a Feather file has to be of version 2",
        ) from None


def _wanted(schema: pa.Schema, options: ReadOptions) -> list[int]:
    """Returns the positions of the columns that are asked for, or of all; of two with one name the first."""
    if options.only is None:
        return list(range(len(schema)))
    first = {name: i for i, name in reversed(list(enumerate(schema.names))) if name in options.only}
    return sorted(first.values()) or list(range(len(schema)))


def not_whole(path: Path, error: Exception) -> DataError:
    """Returns the error for a Parquet file that cannot be read to its end."""
    return DataError(
        f"not a complete Parquet file: {first_line(error)}",
        where=str(path),
        hint="fetch or export it again; it may be truncated",
    )
