"""Parquet. The result has the columns of the file with their types, and the answers after them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from headrace.errors import first_line
from headrace.runtime.contract import Contract
from headrace.scoring.answers import answer_columns, clash_note
from headrace.scoring.columns import columns_of_fields
from headrace.scoring.rows import PARQUET, PART_BYTES, PART_ROWS, AnswerWriter, BadFile, Chunk, Line, Others, RowsFile
from headrace.scoring.values import from_values

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS, GROUP_BYTES = 64 * 1024, 32 * 1024 * 1024
"""Rows of the result are written in groups of at most this size."""


class ParquetFile(RowsFile):
    """A Parquet file. pyarrow is imported when one is read."""

    media_type = PARQUET

    def __init__(
        self, path: Path, contract: Contract, others: Others, partitions: Mapping[str, str | int | None] | None = None
    ) -> None:
        """
        Args:
            partitions: columns with one value in all rows, which the names of the file's folders have (`month=1`); those of
                the file come first.
        """
        import pyarrow as pa

        super().__init__(contract, others)
        self._path = path
        with _named_errors("the file is not readable Parquet"):
            file = self._open()
            self._partitions = _as_scalars(partitions or {}, file.schema_arrow.names)
            self.schema = file.schema_arrow
            for name, value in self._partitions.items():
                self.schema = self.schema.append(pa.field(name, value.type))
            self._rows, self._bytes = int(file.metadata.num_rows), _bytes_of(file.metadata)
        self.fields = columns_of_fields(self.schema.names, contract, others)

    def count(self) -> int:
        return self._rows

    def chunks(self, skip: int = 0) -> Iterator[Chunk]:
        """Yields rows from row `skip` on, without reading the row groups before it."""
        first, fields = skip, {field.name: field for field in self.contract.inputs}
        for batch in self._batches(skip):
            rows = self._rows_of(batch)
            places = [f"row {row}" for row in range(first, first + len(rows))]
            first += len(rows)
            yield Chunk([from_values(row, fields) for row in rows], batch, places)

    def writer(self, handle: BinaryIO) -> AnswerWriter:
        return _ParquetWriter(self, handle)

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self._path)

    def _batches(self, skip: int) -> Iterator[pa.RecordBatch]:
        file = self._open()
        groups = list(range(file.metadata.num_row_groups))
        while groups and file.metadata.row_group(groups[0]).num_rows <= skip:
            skip -= file.metadata.row_group(groups.pop(0)).num_rows
        each = max(1, min(PART_ROWS, PART_BYTES * max(1, self._rows) // max(1, self._bytes)))
        # Other columns are read only if they are kept: a column of a type that cannot be read does no harm.
        wanted = None if self.others == "keep" else [self.schema.names[place] for place in self.fields.values()]
        of_file = None if wanted is None else [name for name in wanted if name not in self._partitions]
        with _named_errors("the rest of the file cannot be read"):
            for some in _in_runs(groups, file.metadata):
                for batch in file.iter_batches(batch_size=each, row_groups=some, columns=of_file):
                    if skip >= batch.num_rows:
                        skip -= batch.num_rows
                        continue
                    yield self._with_partitions(batch.slice(skip), wanted)
                    skip = 0

    def _with_partitions(self, batch: pa.RecordBatch, wanted: list[str] | None) -> pa.RecordBatch:
        import pyarrow as pa

        for name, value in self._partitions.items():
            if wanted is None or name in wanted:
                batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
        return batch

    def _rows_of(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        """Returns the fields of each row; decimals become floats, as in the tables that models are trained on."""
        import pyarrow as pa

        columns = {}
        for name, place in self.fields.items():
            column = batch.column(place if self.others == "keep" else batch.schema.names.index(self.schema.names[place]))
            columns[name] = column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
        if not columns:
            return [{} for _ in range(batch.num_rows)]
        with _named_errors("a value cannot be read"):
            found: list[dict[str, Any]] = pa.RecordBatch.from_pydict(columns).to_pylist()
        return found


class _ParquetWriter(AnswerWriter):
    def __init__(self, file: ParquetFile, handle: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._keeps = file.others == "keep"
        self._columns = answer_columns(file.contract, file.schema.names if self._keeps else (), () if self._keeps else ("row",))
        if self._keeps:
            file.note(clash_note(self._columns[0].name))
        types = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64()}
        self._answers = pa.schema([(column.name, types[column.kind]) for column in self._columns])
        of_file = list(file.schema) if self._keeps else []
        self._schema = pa.schema([*of_file, *self._answers], file.schema.metadata if self._keeps else None)
        self._writer = pq.ParquetWriter(handle, self._schema)
        self._held: list[pa.Table] = []

    def write(self, chunk: Chunk, lines: list[Line]) -> None:
        import pyarrow as pa

        answers = [
            pa.array([column.value(line) for line in lines], kind.type)
            for column, kind in zip(self._columns, self._answers, strict=True)
        ]
        arrays = [*(chunk.sources.columns if self._keeps else []), *answers]
        self._held.append(pa.Table.from_arrays(arrays, schema=self._schema))
        if sum(t.num_rows for t in self._held) >= GROUP_ROWS or sum(t.nbytes for t in self._held) >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        try:
            self._writer.write_table(pa.concat_tables(self._held))
        except MemoryError as error:
            message = f"the result needs too much memory: {first_line(error)}; leave out columns with very large cells"
            raise BadFile("too_large", message) from None
        self._held = []


class _named_errors:
    """Raises the errors of pyarrow as a `BadFile`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException | OSError | ValueError | MemoryError) and not isinstance(error, BadFile):
            raise BadFile("bad_parquet", f"{self._what}: {first_line(error)}") from None


def _as_scalars(partitions: Mapping[str, str | int | None], names: Collection[str]) -> dict[str, pa.Scalar]:
    """The values of the columns that the file does not have, by name."""
    import pyarrow as pa

    types = {name: pa.int64() if isinstance(value, int) else pa.string() for name, value in partitions.items()}
    return {name: pa.scalar(value, types[name]) for name, value in partitions.items() if name not in names}


def _in_runs(groups: list[int], metadata: Any) -> Iterator[list[int]]:
    """Yields runs of row groups of about `PART_BYTES`: `iter_batches` holds what it has read of all groups until its end."""
    run, size = list[int](), 0
    for group in groups:
        run.append(group)
        size += int(metadata.row_group(group).total_byte_size)
        if size >= PART_BYTES:
            yield run
            run, size = [], 0
    if run:
        yield run


def _bytes_of(metadata: Any) -> int:
    return sum(int(metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups))
