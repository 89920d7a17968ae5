"""Batches as tables: the columns of a recipe, and all batches of a recipe as one DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.data.formats.column_rules import ColumnRules
from headrace.data.formats.files import format_of, not_whole, read_file
from headrace.data.formats.graph_tables import no_gaps
from headrace.data.formats.options import ReadOptions
from headrace.data.formats.partitions import with_partitions
from headrace.errors import DataError, near_miss
from headrace.recipe.pictures import IMAGE
from headrace.runtime.values import category_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from headrace.project import Project
    from headrace.recipe.data import DataConfig
    from headrace.recipe.recipe import Recipe

KEY = "headrace.source"
"""The key of the source in a Parquet file's metadata."""
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
    """The table of a source or a file with the recipe's columns and rows, and what was left out."""

    table: pa.Table
    left_out: tuple[str, ...]
    """One line per reason, with the number of rows."""


def read_batch(path: Path, data: DataConfig, schema: pa.Schema) -> SelectedTable:
    """Reads one file as a later batch: a table with the stored columns in their order, without the rows that the recipe
    leaves out. It may have the column names of the source (`data.rename`), and UTF-8 instead of the source's encoding.

    Args:
        schema: schema of the existing batches, whose columns are required; its texts stay text.

    Raises:
        DataError: as `read_file`; or a column is missing, or has text where the other batches have numbers.
    """
    text = [field.name for field in schema if str(field.type) == "string"]
    numbers = [field.name for field in schema if _family(field.type) == "number"]
    names = data.names_without_header
    has_no_header = not data.header and (data.stored_columns == data.columns or names != data.columns)
    stored = data.stored_columns or schema.names
    original = {new: old for old, new in data.rename.items()}
    options = ReadOptions(
        # A file whose name tells no format is as the source is, where the recipe says how that is read.
        format=data.format if data.read is not None and format_of(path) in (None, "lines") else None,
        header=not has_no_header,
        names=names if has_no_header else None,
        text=[*text, *(original[name] for name in text if name in original)],
        read=data.read,
        only={*stored, *(original.get(name, name) for name in stored)} if data.graph is None and data.columns else None,
        label_lists=data.label_lists,
        numbers=[*numbers, *(original[name] for name in numbers if name in original)],
        rules=column_rules(data),
    )
    encoding = (data.read.encoding if data.read else None) or data.encoding
    as_utf8 = options if data.read is None else replace(options, read=data.read.model_copy(update={"encoding": "utf-8"}))
    try:
        table = read_file(path, as_utf8)
    except DataError:
        if encoding == "utf-8":
            raise
        table = read_file(path, replace(options, encoding=encoding))
    if data.read is not None:
        table = with_partitions(table, path, options.only, {*options.text, *options.rules.text_columns}, options.numbers)
    table = table.rename_columns([data.rename.get(name, name) for name in table.column_names])
    table = match_booleans(select(table, data.stored_columns or schema.names, path), schema)
    check_types(table, schema, path)
    if data.graph is not None:
        table = no_gaps(table, data)
    selected = drop_excluded_rows(table, data, path)
    return SelectedTable(compact_pixels(selected.table, data), selected.left_out)


def column_rules(data: DataConfig) -> ColumnRules:
    """Returns how the recipe reads the values of its files."""
    return ColumnRules(None if data.missing is None else tuple(data.missing), data.trim, data.value_rules())


def match_booleans(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns the columns of true and false in the type that earlier batches have: before booleans were a type of their own,
    they were stored as texts. The numbers 0 and 1 are false and true where earlier batches have these."""
    import pyarrow as pa
    from pyarrow import types

    for i, name in enumerate(table.column_names):
        if name not in schema.names:
            continue
        column, kind = table.column(i), schema.field(name).type
        if types.is_boolean(column.type) and types.is_string(kind):
            table = table.set_column(i, name, column.cast(pa.string()))
        elif types.is_boolean(kind) and _family(column.type) == "number" and _is_zero_or_one(column):
            table = table.set_column(i, name, column.cast(pa.bool_()))
    return table


def _is_zero_or_one(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    return bool(pc.all(pc.is_in(column.drop_null(), pa.array([0, 1], column.type))).as_py())


def drop_excluded_rows(table: pa.Table, data: DataConfig, path: Path) -> SelectedTable:
    """Removes the rows that the recipe leaves out (`drop_missing`, `drop_values`, `drop_duplicates`); counts them by reason.

    Raises:
        DataError: a column of `drop_missing`, `drop_values` or `drop_duplicates` is missing.
    """
    import pyarrow as pa

    kept, left_out = table, list[str]()
    for name in data.drop_missing:
        select(kept, [name], path)
        kept = kept.filter(_has_value(kept[name]))
    if dropped := table.num_rows - kept.num_rows:
        left_out.append(f"{dropped:,} rows left out: no value in {', '.join(data.drop_missing)}")
    for name, values in data.drop_values.items():
        select(kept, [name], path)
        before = kept.num_rows
        kept = kept.filter(_is_other(kept[name], values))
        if dropped := before - kept.num_rows:
            left_out.append(f"{dropped:,} rows left out: {name} is {', '.join(map(str, values[:10]))}")
    for name in data.drop_duplicates:
        select(kept, [name], path)
        is_first, contradicts = _duplicates(kept, name, data.targets)
        if contradicts.any():
            left_out.append(
                f"{contradicts.sum():,} rows left out: the same {name} with more than one {', '.join(data.targets)}"
            )
        if repeated := int((~is_first & ~contradicts).sum()):
            left_out.append(f"{repeated:,} rows left out: the same {name} as an earlier row")
        kept = kept.filter(pa.array(is_first & ~contradicts))
    return SelectedTable(kept, tuple(left_out))


def select(table: pa.Table, names: list[str], path: Path) -> pa.Table:
    """Returns the columns `names`, in that order.

    Raises:
        DataError: a column is missing; the message has a close match.
    """
    known = set(table.column_names)
    for name in names:
        if name not in known:
            raise DataError(
                f"no column {name!r}; {near_miss(name, table.column_names[:200])}",
                where=str(path),
                hint="correct the recipe's data section (columns, target), or use a file that has the column",
            )
    return table.select(names)


def check_types(table: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Checks that columns of numbers stay numbers, and texts stay texts.

    Raises:
        DataError: a column has another type; the message names the first row that differs.
    """

    for field in schema:
        if field.name not in table.column_names:
            continue
        expected, column = field.type, table[field.name]
        if column.null_count == len(column) or _family(expected) == _family(column.type):
            continue
        row = next((i for i, v in enumerate(column.to_pylist()) if v is not None and not _fits(v, expected)), 0)
        shown = column[row].as_py()
        names = {"text": "text", "time": "times", "number": "numbers", "boolean": "true and false"}
        kind = names[_family(expected)]
        raise DataError(
            f"column {field.name!r} has {kind} in earlier batches, and {shown!r} here",
            where=f"{path}, data row {row + 1}",
            hint="correct the values of that column in the file",
        )


def compact_pixels(table: pa.Table, data: DataConfig) -> pa.Table:
    """Converts pixels (integers from 0 to 255) to uint8."""
    import pyarrow as pa

    if data.pixels is None:
        return table
    fields = []
    for field in table.schema:
        fits = field.name not in data.targets and _are_pixels(table[field.name])
        fields.append(pa.field(field.name, pa.uint8()) if fits else field)
    return table.cast(pa.schema(fields))


def write_batch(table: pa.Table, path: Path, key: str | None = None) -> None:
    """Writes Parquet whose bytes depend on the arguments only, so that the same source gives the same data version.

    Args:
        key: stored in the file's metadata; `stored_key` reads it.
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
    """Returns the key in a batch's metadata, or None; also for a file that cannot be read, so that it is written again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = (pq.read_metadata(path).metadata or {}).get(KEY.encode())
    except (OSError, pa.ArrowException):
        return None
    return found.decode() if found else None


def batch_files(project: Project, recipe_name: str) -> list[Path]:
    """Returns the files of the batches, in the order in which they were added."""
    return sorted(project.raw_data(recipe_name).glob("*.parquet"))


def read_arrow(project: Project, recipe: Recipe) -> pa.Table:
    """Reads all batches as one Arrow table with the recipe's columns; of pictures without the bytes of their files.

    Raises:
        DataError: the recipe has no data, or a batch is damaged or lacks a column of the recipe.
    """
    import pyarrow as pa

    files = batch_files(project, recipe.name)
    if not files:
        raise no_data(recipe.name, project)
    tables = [read_file(path) if recipe.data.pictures is None else _without_pictures(path) for path in files]
    names = recipe.data.stored_columns or tables[0].column_names
    tables = [select(table, names, path) for table, path in zip(tables, files, strict=True)]
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise DataError(
            f"the batches do not match: {str(error).splitlines()[0]}",
            where=str(project.raw_data(recipe.name)),
            hint=f"remove the batch that differs from {project.raw_data(recipe.name)}, then add it again corrected",
        ) from None


def _without_pictures(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = [name for name in pq.read_schema(path).names if name != IMAGE]
        return pq.read_table(path, columns=names, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise not_whole(path, error) from None


def read_batches(project: Project, recipe: Recipe) -> pd.DataFrame:
    """Reads all batches as one DataFrame, in the order in which they were added, with rows numbered from 0.

    Raises:
        DataError: as `read_arrow`.
    """
    return to_frame(read_arrow(project, recipe))


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Returns the table as pandas has it; columns of integers with gaps are floats, except where these would round one."""
    frame: pd.DataFrame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if _exceeds_doubles(column):
            frame[name] = _exact_integers(column)
    return frame


def _exceeds_doubles(column: pa.ChunkedArray) -> bool:
    """Returns whether a column has gaps, and whole numbers beyond 2^53."""
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_integer(column.type) or column.type.bit_width < 64 or not column.null_count:
        return False
    bounds = pc.min_max(column).as_py()
    return bool(max(abs(bounds["min"] or 0), abs(bounds["max"] or 0)) > 2**53)


def _exact_integers(column: pa.ChunkedArray) -> pd.Series[Any]:
    import pandas as pd
    from pyarrow import types

    kind = pd.Int64Dtype() if types.is_signed_integer(column.type) else pd.UInt64Dtype()
    found: pd.Series[Any] = column.to_pandas(types_mapper={column.type: kind}.get)
    return found


def stored_schema(project: Project, recipe_name: str) -> pa.Schema | None:
    """Returns the columns and types of the first batch, or None without a batch; reads only the file's footer."""
    import pyarrow.parquet as pq

    files = batch_files(project, recipe_name)
    return pq.read_schema(files[0]) if files else None


def no_data(recipe_name: str, project: Project) -> DataError:
    return DataError(
        f"no data yet for {recipe_name!r}", where=str(project.raw_data(recipe_name)), hint=f"headrace run {recipe_name}"
    )


def _has_value(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns which rows have a value; NaN is missing."""
    import pyarrow.compute as pc
    from pyarrow import types

    return pc.is_valid(column) if not types.is_floating(column.type) else pc.invert(pc.is_null(column, nan_is_null=True))


def _is_other(column: pa.ChunkedArray, labels: Sequence[bool | str | int | float]) -> pa.ChunkedArray:
    """Returns which rows have none of these values; 1, 1.0 and "1" are one value."""
    import pyarrow as pa

    names = {category_text(label) for label in labels}
    encoded = column.combine_chunks().dictionary_encode()
    chunk = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    keeps = [value is None or category_text(value) not in names for value in chunk.dictionary.to_pylist()]
    return pa.array(keeps, pa.bool_()).take(chunk.indices).fill_null(True)


def _duplicates(table: pa.Table, name: str, targets: list[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns for each row whether its value of `name` appears for the first time, and whether rows with this value have
    different targets. Rows without a value are not duplicates."""
    import pandas as pd

    codes = _codes(table[name])
    is_first = ~pd.Series(codes).duplicated().to_numpy() | (codes < 0)
    varies = np.zeros(table.num_rows, dtype=bool)
    for target in targets:
        varies |= (
            pd.Series(_codes(table[target])).groupby(codes).transform("nunique").to_numpy() > 1
        )  # -1 (no value) is a group
    return is_first, varies & (codes >= 0) & (name not in targets)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns a number for each distinct value, -1 for a missing one; integers with gaps stay exact."""
    import pandas as pd

    values = _exact_integers(column) if _exceeds_doubles(column) else column.to_pandas()
    codes: NDArray[np.int64] = pd.factorize(values)[0]
    return codes


def _are_pixels(column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_integer(column.type) or column.null_count or not len(column):
        return False
    bounds = pc.min_max(column).as_py()
    return bool(bounds["min"] >= 0 and bounds["max"] <= 255)


def _family(kind: pa.DataType) -> str:
    from pyarrow import types

    if types.is_boolean(kind):
        return "boolean"
    return "number" if types.is_integer(kind) or types.is_floating(kind) else "time" if types.is_timestamp(kind) else "text"


def _fits(value: Any, expected: pa.DataType) -> bool:
    """Returns whether a text is a number, for a column of numbers: finds the row that turned the column into text."""
    if _family(expected) != "number" or not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
