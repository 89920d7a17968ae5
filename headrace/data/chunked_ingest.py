"""Ingests a Parquet source larger than memory: copies it row group by row group and validates it chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.console import Report, bar
from headrace.data.assembly import combine, with_recipe_names
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
from headrace.data.formats.files import ENDINGS, not_whole, plain_schema
from headrace.data.sources.archives import is_pattern
from headrace.data.tables import KEY, PARQUET_OPTIONS, drop_excluded_rows, group_rows, schema_bytes
from headrace.errors import DataError
from headrace.files import atomic_write
from headrace.project import Project
from headrace.recipe.task_types import task_type_entry

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.data.validation.validate import ValidationReport
    from headrace.recipe.data import DataConfig, SourceFile
    from headrace.recipe.recipe import Recipe


def is_chunked_source(paths: Sequence[Path], recipe: Recipe) -> bool:
    """Returns whether the source is Parquet, larger than the memory limit, and needs no step that takes all rows at once."""

    data = recipe.data
    is_parquet = data.format == "parquet" or all(path.name.lower().endswith(ENDINGS["parquet"]) for path in paths)
    is_plain = all(file.role == "table" and not is_pattern(file.uri) for file in data.files)
    needs_all_rows = data.incremental or data.drop_duplicates or data.image
    if not is_parquet or not is_plain or needs_all_rows or not task_type_entry(recipe.task).reads_chunks:
        return False
    return exceeds_memory(paths, data)


def ingest_in_chunks(
    paths: Sequence[Path], recipe: Recipe, project: Project, name: str, key: str, report: Report
) -> ValidationReport:
    """Copies the recipe's columns and rows, validates the copy, and moves it to `data/<recipe>/<name>`. The file has the
    same bytes as one that is ingested as a whole.

    Raises:
        DataError: a file is damaged, or cannot be read with the recipe's options.
        DataRejected: it failed validation and is in quarantine; the data version is unchanged.
        DiskFull, Busy: nothing has changed.
    """
    staged = staging_path(project, recipe, name)
    try:
        with atomic_write(staged) as temporary:
            _copy(list(zip(recipe.data.files, paths, strict=True)), recipe.data, temporary, key, report)
        validation = validate_or_quarantine(open_chunks([staged], recipe.data), recipe, project, "first")
        report(validation.summary)
        move_into_place(staged, project, recipe, name)
        return validation
    finally:
        staged.unlink(missing_ok=True)


def _copy(files: list[tuple[SourceFile, Path]], data: DataConfig, to: Path, key: str, report: Report) -> None:
    import pyarrow as pa

    opened = [open_parquet(path) for _, path in files]
    empty = [plain_schema(file.schema_arrow, path).empty_table() for file, (_, path) in zip(opened, files, strict=True)]
    shapes = [(with_recipe_names(table, data, path, file.part), path) for table, (file, path) in zip(empty, files, strict=True)]
    schema = combine(shapes, data).schema
    rows = sum(file.metadata.num_rows for file in opened)
    size = max(1, min(CHUNK_BYTES, memory_limit(data) // CHUNK_FRACTION) // schema_bytes(schema))
    writer, done = RowGroupWriter(to, schema, group_rows(schema), **PARQUET_OPTIONS), 0
    try:
        with bar(f"copying {files[0][1].name}", rows) as progress:
            for file, path in files:
                for table in _pieces(file, path, data, schema, size):
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
        report(f"{dropped:,} rows left out: no value in {', '.join(data.drop_missing)}")
    if not writer.written:
        raise DataError("no rows", where=str(files[0][1]), hint="correct data.source or data.drop_missing in the recipe")


def _pieces(file: SourceFile, path: Path, data: DataConfig, schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    """Yields the rows of one file as they are stored, including those that `data.drop_missing` leaves out.

    Raises:
        DataError: the file is damaged.
    """
    original = {new: old for old, new in data.rename.items()}
    wanted = [original.get(name, name) for name in schema.names]
    stored = open_parquet(path).schema_arrow
    names = [name for name in wanted if name in stored.names]
    try:
        for raw in read_row_groups(path, names, size):
            plain = raw.cast(plain_schema(raw.schema, path))
            plain = plain.rename_columns([data.rename.get(name, name) for name in plain.column_names])
            shape = with_recipe_names(plain, data.model_copy(update={"rename": {}}), path, file.part)
            yield shape.select(schema.names).cast(schema)
    except OSError as error:
        raise not_whole(path, error) from None
