"""A Parquet source larger than memory lands row group by row group, and passes the gate chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.console import bar
from headrace.data.sources.archives import is_pattern
from headrace.data.assembly import lay_out, named
from headrace.data.chunks import (CHUNK_BYTES, CHUNK_SHARE, RowGroups, group_rows, in_chunks, is_large, memory_for, open_parquet, read_groups, schema_bytes,)
from headrace.data.formats.files import ENDINGS, not_whole, plain_schema
from headrace.data.commit import Report, incoming, validate_or_quarantine, put
from headrace.data.tables import KEY, PACKING, tidy
from headrace.errors import DataError
from headrace.files import whole
from headrace.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.recipe import Recipe
    from headrace.recipe.data import DataConfig, SourceFile


def comes_in_chunks(paths: Sequence[Path], recipe: Recipe) -> bool:
    """Whether the source is Parquet, larger than memory is to hold, and asks for nothing that takes all rows at once."""
    from headrace.recipe.task_types import task_type_of

    data = recipe.data
    is_parquet = data.format == "parquet" or all(path.name.lower().endswith(ENDINGS["parquet"]) for path in paths)
    is_plain = all(file.role == "table" and not is_pattern(file.uri) for file in data.files)
    takes_all = data.arrive or data.drop_duplicates or data.image
    if not is_parquet or not is_plain or takes_all or task_type_of(recipe.task).learner(recipe) is None:
        return False
    return is_large(paths, data)


def land_in_chunks(paths: Sequence[Path], recipe: Recipe, project: Project, name: str, key: str, report: Report) -> None:
    """Copies the recipe's columns and rows, holds the copy against the gate, and puts it into `data/<recipe>/<name>`. Its
    bytes are those that it has when it lands as a whole.

    Raises:
        DataError: a file is damaged, or cannot be read as the recipe says.
        DataRejected: the gate refused it; what changed is its place in quarantine.
        DiskFull, Busy: nothing has changed.
    """
    staged = incoming(project, recipe, name)
    try:
        with whole(staged) as beside:
            _copy(list(zip(recipe.data.files, paths, strict=True)), recipe.data, beside, key, report)
        found = validate_or_quarantine(in_chunks([staged], recipe.data), recipe, project, "first")
        report(f"{found.passed} of {found.total} expectations met on {found.rows:,} rows")
        put(staged, project, recipe, name)
    finally:
        staged.unlink(missing_ok=True)


def _copy(files: list[tuple[SourceFile, Path]], data: DataConfig, to: Path, key: str, report: Report) -> None:
    import pyarrow as pa

    opened = [open_parquet(path) for _, path in files]
    empty = [plain_schema(file.schema_arrow, path).empty_table() for file, (_, path) in zip(opened, files, strict=True)]
    shapes = [(named(table, data, path, file.part), path) for table, (file, path) in zip(empty, files, strict=True)]
    schema = lay_out(shapes, data).schema
    rows = sum(file.metadata.num_rows for file in opened)
    size = max(1, min(CHUNK_BYTES, memory_for(data) // CHUNK_SHARE) // schema_bytes(schema))
    writer, done = RowGroups(to, schema, group_rows(schema), **PACKING), 0
    try:
        with bar(f"copying {files[0][1].name}", rows) as progress:
            for file, path in files:
                for table in _pieces(file, path, data, schema, size):
                    writer.add(tidy(table, data, path).table)
                    done += table.num_rows
                    progress.move(done)
        writer.close({KEY: key})
    except (pa.ArrowException, ValueError) as error:
        writer.abandon()
        raise not_whole(path, error) from None
    except BaseException:
        writer.abandon()
        raise
    if dropped := done - writer.written:
        report(f"{dropped:,} rows left out: nothing in {', '.join(data.drop_missing)}")
    if not writer.written:
        raise DataError("no rows", where=str(files[0][1]), hint="correct data.source, or data.drop_missing, in the recipe")


def _pieces(file: SourceFile, path: Path, data: DataConfig, schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    """The rows of one file as they land, except for those that the recipe leaves out.

    Raises:
        DataError: the file is damaged.
    """
    back = {new: old for old, new in data.rename.items()}
    wanted = [back.get(name, name) for name in schema.names]
    there = open_parquet(path).schema_arrow
    names = [name for name in wanted if name in there.names]
    try:
        for raw in read_groups(path, names, size):
            plain = raw.cast(plain_schema(raw.schema, path))
            plain = plain.rename_columns([data.rename.get(name, name) for name in plain.column_names])
            shape = named(plain, data.model_copy(update={"rename": {}}), path, file.part)
            yield shape.select(schema.names).cast(schema)
    except OSError as error:
        raise not_whole(path, error) from None
