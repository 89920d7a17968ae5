"""A table in pieces: what memory cannot hold at once is read and written chunk by chunk, as often as a stage asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.files import not_whole
from headrace.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from headrace.recipe.recipe import Recipe
    from headrace.recipe.data import DataConfig
    from headrace.project import Project

SHARE = 16
"""Of the free memory, the part that a table may take: a stage that holds it as a whole has copies, parts and hashes of it
beside it, and other programs want room too."""
CHUNK_BYTES = 32 * 2**20
"""Of a chunk, as Arrow holds it."""
CHUNK_SHARE = 8
"""Of `data.memory`, the part that a chunk takes at most."""
TEXT_BYTES = 24
"""Of a text, where nothing else is known."""
GROUP_BYTES = 128 * 2**20
"""Of a row group that is written."""
GROUP_ROWS = 2**20
READ_BYTES = 2**20


@dataclass(frozen=True)
class Chunks:
    """A table that is read chunk by chunk."""

    files: tuple[Path, ...]
    schema: pa.Schema
    """Of every chunk. Whole numbers with a gap anywhere are floating ones everywhere, as pandas has them."""
    rows: int
    size: int
    """Rows of a chunk; where a file or a row group ends, fewer."""

    @property
    def names(self) -> list[str]:
        names: list[str] = self.schema.names
        return names

    def tables(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in their order; of the columns `names`, where given.

        Raises:
            DataError: a file is damaged; it says from which row on.
        """
        import pyarrow as pa

        wanted = pa.schema([self.schema.field(name) for name in names or self.names])
        done = 0
        for path in self.files:
            try:
                for table in read_groups(path, wanted.names, self.size):
                    yield table.cast(wanted, safe=False)
                    done += table.num_rows
            except (pa.ArrowException, OSError) as error:
                damage = not_whole(path, error)
                raise DataError(damage.message, where=f"{path}, after row {done:,}", hint=damage.hint) from None

    def frames(self, names: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """As `tables`; rows are numbered from 0 through the whole table."""
        import pandas as pd

        done = 0
        for table in self.tables(names):
            frame: pd.DataFrame = table.to_pandas()
            frame.index = pd.RangeIndex(done, done + len(frame))
            done += len(frame)
            yield frame


class RowGroups:
    """Writes a Parquet file piece by piece; its bytes depend on the rows, not on how they were cut into pieces."""

    def __init__(self, path: Path, schema: pa.Schema, rows: int, **options: Any) -> None:
        """`rows` are of a row group; `options` are pyarrow's `ParquetWriter`'s."""
        import pyarrow.parquet as pq

        self.written = 0
        self._rows = rows
        self._waiting: list[pa.Table] = []
        self._schema = schema.remove_metadata()
        self._file = path.open("wb")
        self._writer: pq.ParquetWriter = pq.ParquetWriter(self._file, self._schema, **options)

    def add(self, table: pa.Table) -> None:
        """Adds rows; what fills a row group is written."""
        if not table.num_rows:
            return
        self._waiting.append(table.cast(self._schema))
        while sum(part.num_rows for part in self._waiting) >= self._rows:
            self._write(self._rows)

    def close(self, metadata: dict[str, str] | None = None) -> None:
        """Writes what is left, and the end of the file."""
        self._write(self._rows)
        if metadata:
            self._writer.add_key_value_metadata(metadata)
        self._writer.close()
        self._file.close()

    def abandon(self) -> None:
        """Lets the file go as it is."""
        self._waiting.clear()
        self._writer.is_open = False  # else it would write the file's end when it is collected
        with suppress(OSError):  # of a full disk: what went wrong has been said
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


def stored(project: Project, recipe: Recipe) -> pd.DataFrame | Chunks:
    """All batches of a recipe, in the order in which they came: as one table where memory can hold it, or in chunks.

    Raises:
        DataError: no data yet, a batch is damaged, or lacks a column that the recipe names.
    """
    from headrace.data.tables import read_batches

    return large(project, recipe) or read_batches(project, recipe)


def large(project: Project, recipe: Recipe) -> Chunks | None:
    """All batches in chunks, where they are too large for memory and the kind of task can go on with pieces; else None.

    Raises:
        DataError: as `stored`.
    """
    from headrace.data.tables import batch_files
    from headrace.recipe.task_types import task_type_of

    files = batch_files(project, recipe.name)
    if not files or task_type_of(recipe.task).learner(recipe) is None or not is_large(files, recipe.data):
        return None
    return in_chunks(files, recipe.data)


def is_large(files: Sequence[Path], data: DataConfig) -> bool:
    """Whether the table in these Parquet files is more than memory is to hold.

    Raises:
        DataError: a file is damaged.
    """
    ends = [open_parquet(path).metadata for path in files]
    return bool(sum(end.num_rows * _row_bytes(end) for end in ends) > memory_for(data))


def in_chunks(files: Sequence[Path], data: DataConfig) -> Chunks:
    """The table in these Parquet files, in chunks that memory can hold.

    Raises:
        DataError: a file is damaged, lacks a column, or does not fit to the others.
    """
    import pyarrow as pa

    from headrace.data.tables import select

    opened = [open_parquet(path) for path in files]
    names = data.landed or opened[0].schema_arrow.names
    schemas = []
    for path, file in zip(files, opened, strict=True):
        select(file.schema_arrow.empty_table(), names, path)
        schemas.append(pa.schema([pa.field(name, file.schema_arrow.field(name).type) for name in names]))
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"the batches do not fit together: {str(error).splitlines()[0]}",
            where=str(files[0].parent),
            hint="remove the batch that differs, then add it again corrected",
        ) from None
    gaps = {name for file in opened for name in _with_gaps(file.metadata)}
    fields = [pa.field(f.name, pa.float64() if pa.types.is_integer(f.type) and f.name in gaps else f.type) for f in schema]
    width = max(_row_bytes(file.metadata) for file in opened)
    size = max(1, min(CHUNK_BYTES, memory_for(data) // CHUNK_SHARE) // width)
    return Chunks(tuple(files), pa.schema(fields), sum(file.metadata.num_rows for file in opened), size)


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file's end, read; its columns are read through small buffers later.

    Raises:
        DataError: it is no whole Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise not_whole(path, error) from None


def read_groups(path: Path, names: Sequence[str], size: int) -> Iterator[pa.Table]:
    """The rows of a Parquet file, at most `size` at a time, row group by row group.

    Raises:
        ArrowException, OSError: the file is damaged.
    """
    import pyarrow as pa

    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(size, row_groups=[group], columns=list(names)):
                yield pa.Table.from_batches([batch]).select(list(names))


def head(path: Path, rows: int) -> pd.DataFrame:
    """The first rows of a Parquet file."""
    file = open_parquet(path)
    table = next(read_groups(path, file.schema_arrow.names, rows), None)
    frame: pd.DataFrame = (file.read() if table is None else table).to_pandas()
    return frame


def group_rows(schema: pa.Schema) -> int:
    """Rows of a row group of a table with these columns."""
    return max(1, min(GROUP_ROWS, GROUP_BYTES // schema_bytes(schema)))


def schema_bytes(schema: pa.Schema) -> int:
    """Bytes of a row with these columns, as Arrow holds it."""
    return max(1, sum(_bytes(field.type) for field in schema))


def memory_for(data: DataConfig) -> int:
    """Most bytes that a table may take in memory."""
    return int(data.memory) if data.memory else max(1, free_memory() // SHARE)


def free_memory() -> int:
    """Bytes that this process can still take, by the machine's and the container's word."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control groups, or no limit (`max`)
        return free
    return max(0, min(free, most - used))


def _row_bytes(end: pq.FileMetaData) -> int:
    """Of a row as Arrow holds it; for texts what the file says, where that is more than is assumed."""
    schema = end.schema.to_arrow_schema()
    found = 0
    for i, field in enumerate(schema):
        stored = sum(end.row_group(group).column(i).total_uncompressed_size for group in range(end.num_row_groups))
        is_wide = _bytes(field.type) == TEXT_BYTES
        found += max(TEXT_BYTES, stored // max(1, end.num_rows)) if is_wide else _bytes(field.type)
    return max(1, found)


def _bytes(kind: pa.DataType) -> int:
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # a type without a fixed width
        return TEXT_BYTES


def _with_gaps(end: pq.FileMetaData) -> Iterator[str]:
    """Columns with a missing value, or of which the file does not say that there is none."""
    for i, name in enumerate(end.schema.to_arrow_schema().names):
        for group in range(end.num_row_groups):
            statistics = end.row_group(group).column(i).statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                yield name
                break
