"""Batches as tables: the columns a recipe asks for, and all batches of a recipe as one DataFrame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.data.formats.files import read_file
from headrace.data.formats.graph_tables import no_gaps
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError, near_miss

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from headrace.project import Project
    from headrace.recipe.data import DataConfig
    from headrace.recipe.recipe import Recipe

KEY = "headrace.source"
"""Name in a Parquet file's metadata."""
PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "compression_level": 3, "store_schema": False}
"""How batches are written."""
GROUP_BYTES = 128 * 2**20
"""Size of a row group that is written."""
GROUP_ROWS = 2**20
"""Most rows of a row group."""
TEXT_BYTES = 24
"""Assumed size of a text value, when nothing else is known."""


@dataclass(frozen=True)
class SelectedTable:
    """What a source or a file gave: its table with the recipe's columns, and what was left out."""

    table: pa.Table
    left_out: tuple[str, ...]
    """One line a reason, with the count."""


def read_batch(path: Path, data: DataConfig, like: pa.Schema) -> SelectedTable:
    """Reads one file as a later batch: a table with the landed columns, in their order, without the rows that the recipe
    leaves out. It may use the names of the source (`data.rename`), and UTF-8 where the source has another encoding.

    Args:
        like: the schema of the batches already there; its columns are the ones to find, its texts stay text.

    Raises:
        DataError: as `read_file`; a column is gone, or holds text where the other batches hold numbers.
    """
    text = [field.name for field in like if str(field.type) == "string"]
    is_bare = not data.header and data.stored_columns == data.columns
    reading = ReadOptions(header=not is_bare, names=data.columns if is_bare else None, text=text)
    try:
        table = read_file(path, reading)
    except DataError:
        if data.encoding == "utf-8":
            raise
        table = read_file(path, replace(reading, encoding=data.encoding))
    table = table.rename_columns([data.rename.get(name, name) for name in table.column_names])
    table = select(table, data.stored_columns or like.names, path)
    check_types(table, like, path)
    if data.graph is not None:
        table = no_gaps(table, data)
    selected = drop_excluded_rows(table, data, path)
    return SelectedTable(compact_pixels(selected.table, data), selected.left_out)


def drop_excluded_rows(table: pa.Table, data: DataConfig, path: Path) -> SelectedTable:
    """`table` without the rows that the recipe leaves out, and why so many are.

    Raises:
        DataError: a column that the recipe names here is gone.
    """
    import pyarrow as pa

    kept, said = table, list[str]()
    for name in data.drop_missing:
        select(kept, [name], path)
        kept = kept.filter(_present(kept[name]))
    if dropped := table.num_rows - kept.num_rows:
        said.append(f"{dropped:,} rows left out: nothing in {', '.join(data.drop_missing)}")
    for name in data.drop_duplicates:
        select(kept, [name], path)
        is_first, contradicts = _duplicates(kept, name, data.target)
        if contradicts.any():
            said.append(f"{contradicts.sum():,} rows left out: the same {name} with more than one {data.target}")
        if repeated := int((~is_first & ~contradicts).sum()):
            said.append(f"{repeated:,} rows left out: their {name} stood before")
        kept = kept.filter(pa.array(is_first & ~contradicts))
    return SelectedTable(kept, tuple(said))


def select(table: pa.Table, names: list[str], path: Path) -> pa.Table:
    """The columns `names`, in that order.

    Raises:
        DataError: a column is gone; the near miss is offered.
    """
    known = set(table.column_names)
    for name in names:
        if name not in known:
            raise DataError(
                f"no column {name!r}; {near_miss(name, table.column_names[:200])}",
                where=str(path),
                hint="correct the recipe's data section (columns, target), or bring a file that has the column",
            )
    return table.select(names)


def check_types(table: pa.Table, like: pa.Schema, path: Path) -> None:
    """Numbers stay numbers and texts stay texts from batch to batch.

    Raises:
        DataError: names the column and the first row that does not fit.
    """
    from pyarrow import types

    for field in like:
        if field.name not in table.column_names:
            continue
        was, column = field.type, table[field.name]
        if column.null_count == len(column) or _family(was) == _family(column.type):
            continue
        row = next((i for i, v in enumerate(column.to_pylist()) if v is not None and not _fits(v, was)), 0)
        shown = column[row].as_py()
        kind = "text" if types.is_string(was) else "times" if types.is_timestamp(was) else "numbers"
        raise DataError(
            f"column {field.name!r} holds {kind} so far, and here {shown!r}",
            where=f"{path}, data row {row + 1}",
            hint="correct the values of that column in the file",
        )


def compact_pixels(table: pa.Table, data: DataConfig) -> pa.Table:
    """The same values in small types: pixels (whole numbers from 0 to 255) as uint8."""
    import pyarrow as pa

    if data.image is None:
        return table
    fields = []
    for field in table.schema:
        fits = field.name != data.target and _are_pixels(table[field.name])
        fields.append(pa.field(field.name, pa.uint8()) if fits else field)
    return table.cast(pa.schema(fields))


def write_batch(table: pa.Table, path: Path, key: str | None = None) -> None:
    """Writes Parquet that depends on the arguments alone, so that the same source gives the same data version.

    Args:
        key: kept in the file's metadata; `stored_key` reads it.
    """
    import pyarrow.parquet as pq

    plain = table.combine_chunks().replace_schema_metadata(None)
    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, plain.schema, **PARQUET_OPTIONS) as writer,
    ):
        writer.write_table(plain, row_group_size=group_rows(plain.schema))
        if key:
            writer.add_key_value_metadata({KEY: key})


def group_rows(schema: pa.Schema) -> int:
    """Returns the number of rows of a row group of a table with these columns."""
    return max(1, min(GROUP_ROWS, GROUP_BYTES // schema_bytes(schema)))


def schema_bytes(schema: pa.Schema) -> int:
    """Returns the bytes that a row with these columns takes in Arrow."""
    return max(1, sum(type_bytes(field.type) for field in schema))


def type_bytes(kind: pa.DataType) -> int:
    """Returns the bytes that a value of this type takes in Arrow."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:  # a type without a fixed width
        return TEXT_BYTES


def stored_key(path: Path) -> str | None:
    """The key with which a batch was written, or None; a file that cannot be read has none, so it is made again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = (pq.read_metadata(path).metadata or {}).get(KEY.encode())
    except (OSError, pa.ArrowException):
        return None
    return found.decode() if found else None


def batch_files(project: Project, recipe_name: str) -> list[Path]:
    """Files of the batches, in the order in which they came."""
    return sorted(project.raw(recipe_name).glob("*.parquet"))


def read_arrow(project: Project, recipe: Recipe) -> pa.Table:
    """All batches as one Arrow table with the recipe's columns.

    Raises:
        DataError: no data yet, a batch is damaged, or lacks a column that the recipe names.
    """
    import pyarrow as pa

    files = batch_files(project, recipe.name)
    if not files:
        raise no_data(recipe.name, project)
    tables = [read_file(path) for path in files]
    names = recipe.data.stored_columns or tables[0].column_names
    tables = [select(table, names, path) for table, path in zip(tables, files, strict=True)]
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise DataError(
            f"the batches do not fit together: {str(error).splitlines()[0]}",
            where=str(project.raw(recipe.name)),
            hint=f"remove the batch that differs from {project.raw(recipe.name)}, then add it again corrected",
        ) from None


def read_batches(project: Project, recipe: Recipe) -> pd.DataFrame:
    """All batches as one DataFrame, in the order in which they came, numbered from 0.

    Raises:
        DataError: as `read_arrow`.
    """
    return to_frame(read_arrow(project, recipe))


def to_frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def stored_schema(project: Project, recipe_name: str) -> pa.Schema | None:
    """The first batch's columns and types, or None when there is no batch; reads only the file's end."""
    import pyarrow.parquet as pq

    files = batch_files(project, recipe_name)
    return pq.read_schema(files[0]) if files else None


def no_data(recipe_name: str, project: Project) -> DataError:
    return DataError(
        f"no data yet for {recipe_name!r}", where=str(project.raw(recipe_name)), hint=f"headrace run {recipe_name}"
    )


def _present(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """True where a value stands; NaN counts as nothing."""
    import pyarrow.compute as pc
    from pyarrow import types

    return pc.is_valid(column) if not types.is_floating(column.type) else pc.invert(pc.is_null(column, nan_is_null=True))


def _duplicates(table: pa.Table, name: str, target: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each row: whether its value in column `name` stands there for the first time, and whether rows with this value
    have different targets. Rows without a value are no duplicates."""
    import pandas as pd

    codes = pd.factorize(table[name].to_pandas())[0]
    is_first = ~pd.Series(codes).duplicated().to_numpy() | (codes < 0)
    targets = pd.factorize(table[target].to_pandas())[0]
    varies = pd.Series(targets).groupby(codes).transform("nunique").to_numpy() > 1  # -1 is a group like any other here
    return is_first, varies & (codes >= 0) & (name != target)


def _are_pixels(column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_integer(column.type) or column.null_count or not len(column):
        return False
    bounds = pc.min_max(column).as_py()
    return bool(bounds["min"] >= 0 and bounds["max"] <= 255)


def _family(kind: pa.DataType) -> str:
    from pyarrow import types

    return "number" if types.is_integer(kind) or types.is_floating(kind) else "time" if types.is_timestamp(kind) else "text"


def _fits(value: Any, was: pa.DataType) -> bool:
    """Whether a text could stand in a column of type `was`: finds the row that made a column of numbers into text."""
    if _family(was) != "number" or not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
