"""Tables in chunks: a table larger than memory is read and written chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.files import not_whole
from headrace.data.tables import TEXT_BYTES, batch_files, read_batches, select, type_bytes
from headrace.errors import DataError
from headrace.runtime.memory import free_memory

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from headrace.project import Project
    from headrace.recipe.data import DataConfig
    from headrace.recipe.recipe import Recipe

MEMORY_FRACTION = 16
"""A table may take one part in this many of the free memory: a stage also holds copies, splits and hashes of it, and other
programs need memory too."""
CHUNK_BYTES = 32 * 2**20
"""Size of a chunk in Arrow."""
CHUNK_FRACTION = 8
"""A chunk takes at most one part in this many of `data.memory`."""
READ_BYTES = 2**20


@dataclass(frozen=True)
class Chunks:
    """A table that is read chunk by chunk."""

    files: tuple[Path, ...]
    schema: pa.Schema
    """The schema of every chunk. Integers with a missing value anywhere are floats everywhere, as in pandas."""
    rows: int
    size: int
    """Rows of a chunk; fewer at the end of a file or a row group."""

    @property
    def names(self) -> list[str]:
        names: list[str] = self.schema.names
        return names

    def tables(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the rows in order, with all columns or those in `names`.

        Raises:
            DataError: a file is damaged; the message names the first row that cannot be read.
        """
        import pyarrow as pa

        wanted = pa.schema([self.schema.field(name) for name in names or self.names])
        done = 0
        for path in self.files:
            try:
                for table in read_row_groups(path, wanted.names, self.size):
                    yield table.cast(wanted, safe=False)
                    done += table.num_rows
            except (pa.ArrowException, OSError) as error:
                damage = not_whole(path, error)
                raise DataError(damage.message, where=f"{path}, after row {done:,}", hint=damage.hint) from None

    def frames(self, names: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yields the same as `tables`, as DataFrames with rows numbered from 0 through the whole table."""
        import pandas as pd

        done = 0
        for table in self.tables(names):
            frame: pd.DataFrame = table.to_pandas()
            frame.index = pd.RangeIndex(done, done + len(frame))
            done += len(frame)
            yield frame


class RowGroupWriter:
    """Writes a Parquet file chunk by chunk; its bytes depend on the rows, not on the sizes of the chunks."""

    def __init__(self, path: Path, schema: pa.Schema, rows: int, **options: Any) -> None:
        """`rows` is the number of rows of a row group, `options` go to pyarrow's `ParquetWriter`."""
        import pyarrow.parquet as pq

        self.written = 0
        self._rows = rows
        self._waiting: list[pa.Table] = []
        self._schema = schema.remove_metadata()
        self._file = path.open("wb")
        self._writer: pq.ParquetWriter = pq.ParquetWriter(self._file, self._schema, **options)

    def add(self, table: pa.Table) -> None:
        """Adds rows, and writes every row group that is full."""
        if not table.num_rows:
            return
        self._waiting.append(table.cast(self._schema))
        while sum(part.num_rows for part in self._waiting) >= self._rows:
            self._write(self._rows)

    def close(self, metadata: dict[str, str] | None = None) -> None:
        """Writes the remaining rows and the file's footer."""
        self._write(self._rows)
        if metadata:
            self._writer.add_key_value_metadata(metadata)
        self._writer.close()
        self._file.close()

    def discard(self) -> None:
        """Closes the file without writing the rest."""
        self._waiting.clear()
        self._writer.is_open = False  # otherwise it would write the footer when it is garbage-collected
        with suppress(OSError):  # a full disk has been reported already
            self._file.close()

    def _write(self, rows: int) -> None:
        import pyarrow as pa

        if not self._waiting:
            return
        together = pa.concat_tables(self._waiting)
        group = together.slice(0, rows).combine_chunks()
        self._writer.write_table(group, row_group_size=rows)
        self.written += group.num_rows
        self._waiting = [together.slice(rows)] if together.num_rows > rows else []


def read_stored(project: Project, recipe: Recipe) -> pd.DataFrame | Chunks:
    """Returns all batches of a recipe, in the order in which they were added: as one table if memory can hold it, or in
    chunks.

    Raises:
        DataError: no data yet, a batch is damaged, or lacks a column that the recipe names.
    """

    if recipe.data.pictures is not None:  # their table without the bytes is small
        return read_batches(project, recipe)
    return stored_chunks(project, recipe) or read_batches(project, recipe)


def stored_chunks(project: Project, recipe: Recipe) -> Chunks | None:
    """Returns all batches in chunks, if they are pictures, or too large for memory and the task type reads chunks; else None.

    Raises:
        DataError: as `read_stored`.
    """

    files = batch_files(project, recipe.name)
    if files and recipe.data.pictures is not None:
        return open_chunks(files, recipe.data)
    is_chunked = recipe.task_type.reads_chunks and not recipe.data.pixels
    if not files or not is_chunked or not exceeds_memory(files, recipe.data):
        return None
    return open_chunks(files, recipe.data)


def exceeds_memory(files: Sequence[Path], data: DataConfig) -> bool:
    """Returns whether the table in these Parquet files is larger than `memory_limit`.

    Raises:
        DataError: a file is damaged.
    """
    footers = [open_parquet(path).metadata for path in files]
    return bool(sum(footer.num_rows * _row_bytes(footer) for footer in footers) > memory_limit(data))


def open_chunks(files: Sequence[Path], data: DataConfig) -> Chunks:
    """Opens the table in these Parquet files, in chunks that memory can hold.

    Raises:
        DataError: a file is damaged, lacks a column, or does not match the others.
    """
    import pyarrow as pa

    opened = [open_parquet(path) for path in files]
    names = data.stored_columns or opened[0].schema_arrow.names
    schemas = []
    for path, file in zip(files, opened, strict=True):
        select(file.schema_arrow.empty_table(), names, path)
        schemas.append(pa.schema([pa.field(name, file.schema_arrow.field(name).type) for name in names]))
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"the batches do not match: {str(error).splitlines()[0]}",
            where=str(files[0].parent),
            hint="remove the batch that differs, then add it again corrected",
        ) from None
    gaps = {name for file in opened for name in _nullable_columns(file.metadata)}
    fields = [pa.field(f.name, pa.float64() if pa.types.is_integer(f.type) and f.name in gaps else f.type) for f in schema]
    width = max(_row_bytes(file.metadata) for file in opened)
    if data.pictures is not None:  # what a chunk is decoded to has to fit into memory too
        width = max(width, math.prod(data.pictures.format.shape))
    size = max(1, min(CHUNK_BYTES, memory_limit(data) // CHUNK_FRACTION) // width)
    return Chunks(tuple(files), pa.schema(fields), sum(file.metadata.num_rows for file in opened), size)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a Parquet file and reads its footer; columns are read through small buffers later.

    Raises:
        DataError: it is not a complete Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise not_whole(path, error) from None


def read_row_groups(path: Path, names: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Yields the rows of a Parquet file, at most `size` at a time, row group by row group.

    Raises:
        ArrowException, OSError: the file is damaged.
    """
    import pyarrow as pa

    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(size, row_groups=[group], columns=list(names)):
                yield pa.Table.from_batches([batch]).select(list(names))


def read_head(path: Path, rows: int) -> pd.DataFrame:
    """Returns the first rows of a Parquet file."""
    file = open_parquet(path)
    table = next(read_row_groups(path, file.schema_arrow.names, rows), None)
    frame: pd.DataFrame = (file.read() if table is None else table).to_pandas()
    return frame


def memory_limit(data: DataConfig) -> int:
    """Returns the most bytes that a table may take in memory: `data.memory`, or a part of the free memory."""
    return int(data.memory) if data.memory else max(1, free_memory() // MEMORY_FRACTION)


def _row_bytes(footer: pq.FileMetaData) -> int:
    """Returns the bytes of a row in Arrow; for texts the size in the file, if that is more than assumed."""
    schema = footer.schema.to_arrow_schema()
    found = 0
    for i, field in enumerate(schema):
        stored = sum(footer.row_group(group).column(i).total_uncompressed_size for group in range(footer.num_row_groups))
        is_wide = type_bytes(field.type) == TEXT_BYTES
        found += max(TEXT_BYTES, stored // max(1, footer.num_rows)) if is_wide else type_bytes(field.type)
    return max(1, found)


def _nullable_columns(footer: pq.FileMetaData) -> Iterator[str]:
    """Yields the columns that have a missing value, or may have one as the file has no statistics."""
    for i, name in enumerate(footer.schema.to_arrow_schema().names):
        for group in range(footer.num_row_groups):
            statistics = footer.row_group(group).column(i).statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                yield name
                break
