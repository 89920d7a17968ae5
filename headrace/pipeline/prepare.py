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
from headrace.task_types.adapted import with_base
from headrace.task_types.lookup import task_type_for
from headrace.task_types.table_columns import NotesGaps

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from headrace.data.split_record import SplitRecord

PARTS = ("train", "validation", "test")
GROUP_BYTES = 32 * 2**20
"""Size of a row group. Rows of all three splits are buffered at the same time."""


def prepare(recipe: Recipe, project: Project) -> None:
    """Writes `prepared/{train,validation,test}.parquet`, `schema.json` and `rows.json`, and for the comparison of models
    `split/split.json` and `split/test_keys.npy`.

    Raises:
        DataError: a split is empty, a column holds nothing, or there is one class only.
    """
    out = project.artifacts(recipe.name) / "prepared"
    for left in out.glob(".*.part"):  # of a run that was killed
        left.unlink()
    chunks = stored_chunks(project, recipe)
    schema, rows = _as_a_whole(recipe, project, out) if chunks is None else _in_chunks(chunks, recipe, out)
    schema = with_base(schema, recipe, project.imported_model(recipe.name))
    write_with(out / "schema.json", schema.write)
    write_json(out / "rows.json", rows)


def _as_a_whole(recipe: Recipe, project: Project, out: Path) -> tuple[Schema, dict[str, int]]:
    from headrace.data.split_record import record_of
    from headrace.data.splits import first_test_value, split
    from headrace.data.tables import read_batches

    table, time = read_batches(project, recipe), recipe.data.split.time
    splits = split(table, recipe)
    assert splits.test_keys is not None
    first = None if time is None else first_test_value([table], time)
    _write_record(record_of(recipe, list(table.columns), first, splits.seen_below), splits.test_keys, out)
    schema = task_type_for(recipe).learn(splits, recipe)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, frame in parts.items():
        write_with(out / f"{name}.parquet", lambda beside, frame=frame: frame.to_parquet(beside, index=False))  # type: ignore[misc]
    return schema, {name: len(frame) for name, frame in parts.items()}


def _write_record(record: SplitRecord, test_keys: NDArray[np.uint64], out: Path) -> None:
    import numpy as np

    from headrace.data.split_record import KEYS, RECORD

    def save(beside: Path) -> None:
        with beside.open("wb") as handle:
            np.save(handle, test_keys)

    folder = out.with_name("split")  # not beside the rows: models need not be trained again for it
    write_json(folder / RECORD, record.model_dump(mode="json"))
    write_with(folder / KEYS, save)


def _in_chunks(chunks: Chunks, recipe: Recipe, out: Path) -> tuple[Schema, dict[str, int]]:
    """Gives the same splits as in memory and, up to the last digits of means and deviations, the same schema, in one pass.

    Raises:
        DataError: as `prepare`, with the rows of the chunk where they are known.
    """
    import numpy as np

    from headrace.data.split_record import record_of
    from headrace.data.splits import check_parts, kept_columns, row_keys, split_masks

    if recipe.data.split.per_class is not None:
        raise DataError(
            f"a split by rows of each class ranks all {chunks.rows:,} rows, and they are read in chunks",
            where="data.split.per_class",
            hint="split by shares, by time or by given rows; or raise data.memory, where the machine has it",
        )
    first, seen = _first_test_value(chunks, recipe), set[Any]()
    oldest = _first_training_value(chunks, recipe, first)
    learner, given = task_type_for(recipe).learner(recipe), recipe.data.split.predefined
    assert learner is not None, "only kinds with a learner get chunks"
    kept = kept_columns(chunks.names, recipe)
    fields = [chunks.schema.field(name) for name in kept]
    test_keys = [np.zeros(0, np.uint64)]
    with (
        _writers(out, fields, chunks.size if recipe.data.pictures else None) as writers,
        bar(f"preparing {recipe.name}", chunks.rows) as progress,
    ):
        for frame in chunks.frames():
            masks = split_masks(frame, recipe, first, oldest)
            if given is not None:
                seen.update(frame[given.column].unique()[:50])
            with _rows_named(frame):
                if masks[0].any():
                    learner.add(frame.loc[masks[0], kept])
                if isinstance(learner, NotesGaps):
                    learner.note_gaps(frame)
            test_keys.append(row_keys(frame[masks[2]], recipe))
            for writer, mask in zip(writers.values(), masks, strict=True):
                writer.add(_to_arrow(frame.loc[mask, kept], fields))
            progress.update(int(frame.index[-1]) + 1)
        for writer in writers.values():
            writer.close()
        rows = {name: writer.written for name, writer in writers.items()}
        check_parts({"training": rows["train"], "validation": rows["validation"], "test": rows["test"]}, recipe, seen)
        _write_record(record_of(recipe, chunks.names, first), np.concatenate(test_keys), out)
        return learner.schema(), rows


def _first_test_value(chunks: Chunks, recipe: Recipe) -> Any:
    """The first value that marks test rows, for a split by time; found in one pass over its column. None for other splits."""
    from headrace.data.splits import first_test_value

    time = recipe.data.split.time
    if time is None:
        return None
    return first_test_value(chunks.frames([time.column]), time)


def _first_training_value(chunks: Chunks, recipe: Recipe, first_test: Any) -> Any:
    """The first value in `train.window`; found in one pass over its column. None without a window."""
    from headrace.data.splits import first_training_value

    column = recipe.window_column
    if recipe.train.window is None or column is None:
        return None
    return first_training_value(chunks.frames([column]), recipe, first_test)


@contextmanager
def _writers(out: Path, fields: list[pa.Field], group_rows: int | None) -> Iterator[dict[str, RowGroupWriter]]:
    """One file for each split. They are moved into place when the block ends without an error; else nothing changes.

    Raises:
        DiskFull: no space is left.
    """
    import pyarrow as pa

    schema = pa.schema(fields)
    rows = group_rows or max(1, GROUP_BYTES // schema_bytes(schema))
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
