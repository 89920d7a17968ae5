"""The stage `prepare`: from raw batches to splits and a schema, with the whole table in memory or in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.console import bar
from headrace.data.chunks import Chunks, RowGroupWriter, stored_chunks
from headrace.data.tables import schema_bytes
from headrace.errors import DataError
from headrace.files import atomic_write, write_json, write_with
from headrace.models.schema import Schema
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

PARTS = ("train", "validation", "test")
GROUP_BYTES = 32 * 2**20
"""Size of a row group. Rows of all three splits are buffered at the same time."""


def prepare(recipe: Recipe, project: Project) -> None:
    """Writes `prepared/{train,validation,test}.parquet`, `schema.json` and `rows.json`.

    Raises:
        DataError: a split is empty, a column holds nothing, or there is one class only.
    """
    out = project.artifacts(recipe.name) / "prepared"
    for left in out.glob(".*.part"):  # of a run that was killed
        left.unlink()
    chunks = stored_chunks(project, recipe)
    schema, rows = _as_a_whole(recipe, project, out) if chunks is None else _in_chunks(chunks, recipe, out)
    write_with(out / "schema.json", schema.write)
    write_json(out / "rows.json", rows)


def _as_a_whole(recipe: Recipe, project: Project, out: Path) -> tuple[Schema, dict[str, int]]:
    from headrace.data.splits import split
    from headrace.data.tables import read_batches

    splits = split(read_batches(project, recipe), recipe)
    schema = task_type_of(recipe.task).learn(splits, recipe)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, frame in parts.items():
        write_with(out / f"{name}.parquet", lambda beside, frame=frame: frame.to_parquet(beside, index=False))  # type: ignore[misc]
    return schema, {name: len(frame) for name, frame in parts.items()}


def _in_chunks(chunks: Chunks, recipe: Recipe, out: Path) -> tuple[Schema, dict[str, int]]:
    """Gives the same splits as in memory and, up to the last digits of means and deviations, the same schema, in one pass.

    Raises:
        DataError: as `prepare`, with the rows of the chunk where they are known.
    """
    from headrace.data.splits import check_parts, kept_columns, split_masks

    if recipe.data.split.per_class is not None:
        raise DataError(
            f"a split by rows of each class ranks all {chunks.rows:,} rows, and they are read in chunks",
            where="data.split.per_class",
            hint="split by shares, by time or by given rows; or raise data.memory, where the machine has it",
        )
    last, seen = _last(chunks, recipe), set[Any]()
    learner, given = task_type_of(recipe.task).learner(recipe), recipe.data.split.predefined
    assert learner is not None, "only kinds with a learner get chunks"
    kept = kept_columns(chunks.names, recipe)
    fields = [chunks.schema.field(name) for name in kept]
    with _writers(out, fields) as writers, bar(f"preparing {recipe.name}", chunks.rows) as progress:
        for frame in chunks.frames():
            masks = split_masks(frame, recipe, last)
            if given is not None:
                seen.update(frame[given.column].unique()[:50])
            with _rows_named(frame):
                if masks[0].any():
                    learner.add(frame.loc[masks[0], kept])
            for writer, mask in zip(writers.values(), masks, strict=True):
                writer.add(_to_arrow(frame.loc[mask, kept], fields))
            progress.update(int(frame.index[-1]) + 1)
        for writer in writers.values():
            writer.close()
        rows = {name: writer.written for name, writer in writers.items()}
        check_parts({"training": rows["train"], "validation": rows["validation"], "test": rows["test"]}, recipe, seen)
        return learner.schema(), rows


def _last(chunks: Chunks, recipe: Recipe) -> Any:
    """The value of the test rows, for a split by time; found in one pass over its column. None for other splits."""
    from headrace.data.splits import last_value

    time = recipe.data.split.time
    if time is None:
        return None
    return max(last_value(frame, time.column) for frame in chunks.frames([time.column]))


@contextmanager
def _writers(out: Path, fields: list[pa.Field]) -> Iterator[dict[str, RowGroupWriter]]:
    """One file for each split. They are moved into place when the block ends without an error; else nothing changes.

    Raises:
        DiskFull: no space is left.
    """
    import pyarrow as pa

    schema = pa.schema(fields)
    rows = max(1, GROUP_BYTES // schema_bytes(schema))
    with ExitStack() as stack:
        writers = {
            name: RowGroupWriter(stack.enter_context(atomic_write(out / f"{name}.parquet")), schema, rows) for name in PARTS
        }
        try:
            yield writers
        except BaseException:
            for writer in writers.values():
                writer.discard()
            raise


def _to_arrow(frame: pd.DataFrame, fields: list[pa.Field]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pandas(frame, schema=pa.schema(fields), preserve_index=False)


@contextmanager
def _rows_named(frame: pd.DataFrame) -> Iterator[None]:
    """Adds the rows of the table, counted from 1, to an error about values."""
    try:
        yield
    except DataError as error:
        rows = f"rows {frame.index[0] + 1:,} to {frame.index[-1] + 1:,}"
        raise DataError(error.message, where=f"{error.where}, {rows}", hint=error.hint) from None
