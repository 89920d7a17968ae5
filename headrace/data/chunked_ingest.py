"""Ingests a source larger than memory: copies it block by block and validates it chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.console import Report, bar
from headrace.data.assembly import combine, read_options, with_recipe_names
from headrace.data.chunks import (
    CHUNK_BYTES,
    CHUNK_FRACTION,
    RowGroupWriter,
    exceeds_memory,
    memory_limit,
    open_chunks,
    open_parquet,
    read_row_groups,
)
from headrace.data.commit import move_into_place, staging_path, validate_or_quarantine
from headrace.data.formats.column_rules import apply_rules
from headrace.data.formats.files import format_of, not_whole, plain_schema, stream_file
from headrace.data.formats.streams import TableStream
from headrace.data.sources.archives import is_pattern
from headrace.data.tables import KEY, PARQUET_OPTIONS, column_rules, drop_excluded_rows, group_rows, schema_bytes
from headrace.errors import DataError
from headrace.files import atomic_write
from headrace.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.data.validation.validate import ValidationReport
    from headrace.recipe.data import DataConfig, SourceFile
    from headrace.recipe.recipe import Recipe


STREAMED = ("csv", "tsv", "jsonl", "parquet", "arrow")
"""Formats that are read block by block."""
TEXT_FACTOR = 2
"""A table of text takes at most about this many times its size as an Arrow table, and compressed text five times that."""
COMPRESSED_FACTOR = 5


def is_chunked_source(paths: Sequence[Path], recipe: Recipe) -> bool:
    """Returns whether the source is larger than the memory limit, of a format that is read block by block, and needs no step
    that takes all rows at once."""

    data = recipe.data
    formats = [_format(path, data) for path in paths]
    is_plain = all(file.role == "table" and not is_pattern(file.uri) for file in data.files)
    needs_all_rows = data.incremental or data.drop_duplicates or data.image or data.graph or recipe.task_type.is_multilabel
    if not set(formats) <= set(STREAMED) or not is_plain or needs_all_rows or not recipe.task_type.reads_chunks:
        return False
    if set(formats) == {"parquet"}:
        return exceeds_memory(paths, data)
    return sum(map(_table_bytes, paths)) > memory_limit(data)


def _format(path: Path, data: DataConfig) -> str | None:
    return data.format or format_of(path)


def _table_bytes(path: Path) -> int:
    is_packed = path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst", ".zip")
    return path.stat().st_size * TEXT_FACTOR * (COMPRESSED_FACTOR if is_packed else 1)


def ingest_in_chunks(
    paths: Sequence[Path],
    recipe: Recipe,
    project: Project,
    name: str,
    key: str,
    report: Report,
    check_rows: Callable[[int], None] = lambda rows: None,
) -> ValidationReport:
    """Copies the recipe's columns and rows, validates the copy, and moves it to `data/<recipe>/<name>`. The file has the
    same bytes as one that is ingested as a whole.

    Args:
        check_rows: is called with the number of rows, and raises an error when they are too few.

    Raises:
        DataError: a file is damaged, or cannot be read with the recipe's options.
        DataRejected: it failed validation and is in quarantine; the data version is unchanged.
        DiskFull, Busy: nothing has changed.
    """
    staged = staging_path(project, recipe, name)
    try:
        with atomic_write(staged) as temporary:
            copy_in_chunks(list(zip(recipe.data.files, paths, strict=True)), recipe.data, temporary, key, report)
        check_rows(open_parquet(staged).metadata.num_rows)
        validation = validate_or_quarantine(open_chunks([staged], recipe.data), recipe, project, "first")
        report(validation.summary)
        move_into_place(staged, project, recipe, name)
        return validation
    finally:
        staged.unlink(missing_ok=True)


def copy_in_chunks(files: list[tuple[SourceFile, Path]], data: DataConfig, to: Path, key: str, report: Report) -> None:
    """Copies the recipe's columns and rows of the files of a source to one Parquet file, block by block.

    Raises:
        DataError: a file is damaged, cannot be read with the recipe's options, or has no rows.
    """
    import pyarrow as pa

    opened, rules = [_opened(path, data) for _, path in files], column_rules(data)
    read = [apply_rules(stream.schema.empty_table(), rules, path) for stream, (_, path) in zip(opened, files, strict=True)]
    empty = [plain_schema(table.schema, path).empty_table() for table, (_, path) in zip(read, files, strict=True)]
    shapes = [(with_recipe_names(table, data, path, file.part), path) for table, (file, path) in zip(empty, files, strict=True)]
    schema = combine(shapes, data).schema
    rows = sum(stream.rows for stream in opened)
    size = max(1, min(CHUNK_BYTES, memory_limit(data) // CHUNK_FRACTION) // schema_bytes(schema))
    writer, done = RowGroupWriter(to, schema, group_rows(schema), **PARQUET_OPTIONS), 0
    try:
        with bar(f"copying {files[0][1].name}", rows) as progress:
            for stream, (file, path) in zip(opened, files, strict=True):
                for table in _pieces(stream, file, path, data, schema, size):
                    writer.add(drop_excluded_rows(table, data, path).table)
                    done += table.num_rows
                    progress.update(done)
        writer.close({KEY: key})
    except (pa.ArrowException, ValueError) as error:
        writer.discard()
        raise not_whole(path, error) from None
    except BaseException:
        writer.discard()
        raise
    if dropped := done - writer.written:
        missing = f"no value in {', '.join(data.drop_missing)}" if data.drop_missing else ""
        values = " or ".join(f"{name} is {', '.join(map(str, found[:10]))}" for name, found in data.drop_values.items())
        report(f"{dropped:,} rows left out: {' or '.join(filter(None, (missing, values)))}")
    if not writer.written:
        raise DataError("no rows", where=str(files[0][1]), hint="correct data.source or data.drop_missing in the recipe")


def _opened(path: Path, data: DataConfig) -> TableStream:
    """Returns a file of the source as a stream. A text is read once here, for the types of its columns."""
    if _format(path, data) == "parquet" and data.read is None:
        with open_parquet(path) as file:
            schema, rows = file.schema_arrow.remove_metadata(), file.metadata.num_rows
        return TableStream(schema, rows, lambda: iter(()))
    return stream_file(path, read_options(data))


def _pieces(
    stream: TableStream, file: SourceFile, path: Path, data: DataConfig, schema: pa.Schema, size: int
) -> Iterator[pa.Table]:
    """Yields the rows of one file as they are stored, including those that `data.drop_missing` leaves out.

    Raises:
        DataError: the file is damaged.
    """
    original = {new: old for old, new in data.rename.items()}
    wanted = [original.get(name, name) for name in schema.names]
    names = [name for name in wanted if name in stream.schema.names]
    try:
        is_parquet = _format(path, data) == "parquet" and data.read is None
        rows = 0
        for raw in read_row_groups(path, names, size) if is_parquet else (block.select(names) for block in stream.blocks()):
            read = apply_rules(raw, column_rules(data), path, first_row=rows + 1)
            rows += raw.num_rows
            plain = read.cast(plain_schema(read.schema, path))
            plain = plain.rename_columns([data.rename.get(name, name) for name in plain.column_names])
            shape = with_recipe_names(plain, data.model_copy(update={"rename": {}}), path, file.part)
            yield shape.select(schema.names).cast(schema)
    except OSError as error:
        raise not_whole(path, error) from None
