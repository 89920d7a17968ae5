"""Assembles the files of a source into one table: concatenated parts, joined columns, a graph's edges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from headrace.data.formats.files import read_file, read_packed
from headrace.data.formats.graph_tables import pack, with_edges
from headrace.data.formats.idx_images import read_images
from headrace.data.formats.options import ReadOptions
from headrace.data.sources.addresses import redacted
from headrace.data.sources.archives import is_pattern
from headrace.data.tables import SelectedTable, column_rules, compact_pixels, drop_excluded_rows, select
from headrace.errors import DataError, near_miss
from headrace.recipe.data import PART

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.data import DataConfig, SourceFile


def assemble(paths: Sequence[Path], data: DataConfig) -> SelectedTable:
    """Assembles the files of `data.files` (at `paths`) into one table: the recipe's columns in their order, without the rows
    that it leaves out.

    Raises:
        DataError: a file cannot be read with the recipe's options, or the files do not match.
    """
    files = list(zip(data.files, paths, strict=True))
    table = combine(_tables(files, data), data)
    selected = drop_excluded_rows(table, data, paths[0])
    table, left_out = selected.table, selected.left_out
    for file, path in files:
        if file.role == "edges" and data.graph is not None:
            if data.graph.pack is not None:
                table = pack(table, data)
            table, isolated = with_edges(table, path, data)
            left_out = (*left_out, f"{isolated:,} nodes have no edge") if isolated else left_out
    return SelectedTable(compact_pixels(table, data), left_out)


def combine(tables: list[tuple[pa.Table, Path]], data: DataConfig) -> pa.Table:
    """Concatenates tables, with the recipe's columns in their order.

    Raises:
        DataError: they do not match, or a column is missing.
    """
    table, path = _concatenated(tables, data), tables[0][1]
    wanted = data.columns or [name for name in table.column_names if name != PART or not data.parts]
    table = select(table, wanted + ([PART] if data.parts and PART not in wanted else []), path)
    for field, names in (("data.parse", list(data.parse)), ("data.times", list(data.times))):
        for name in names:
            if name not in table.column_names:
                raise DataError(
                    f"no column {name!r}; {near_miss(name, table.column_names[:200])}",
                    where=f"{path}, {field}",
                    hint=f"correct {field} in the recipe",
                )
    for target in data.targets:
        if target not in table.column_names:
            raise DataError(
                f"no target column {target!r}; {near_miss(target, table.column_names)}",
                where=str(path),
                hint="correct data.target in the recipe",
            )
    return table


def read_options(data: DataConfig) -> ReadOptions:
    """Returns the recipe's options for reading its files."""
    names = None if data.header else data.names_without_header
    return ReadOptions(
        data.format,
        data.header,
        names,
        encoding=data.encoding,
        label_lists=data.label_lists,
        skip_rows=data.skip_rows,
        rules=column_rules(data),
        read=data.read,
        only=needed_columns(data),
        codes=[name for name in data.categorical or () if name != data.target],
    )


def needed_columns(data: DataConfig) -> set[str] | None:
    """Returns the columns of the files that the recipe needs, by their names there; None: all of them."""
    if data.columns is None or data.graph is not None:
        return None
    original = {new: old for old, new in data.rename.items()}
    needed = {*data.columns, *(original.get(name, name) for name in data.columns), *data.rename}
    return needed | ({data.join.key} if data.join else set())


def _renamed(table: pa.Table, data: DataConfig, path: Path) -> pa.Table:
    """
    Raises:
        DataError: a column in `data.rename` is missing.
    """
    for name in data.rename:
        if name not in table.column_names:
            raise DataError(
                f"no column {name!r} to rename; {near_miss(name, table.column_names[:200])}",
                where=str(path),
                hint="correct data.rename in the recipe",
            )
    return table.rename_columns([data.rename.get(name, name) for name in table.column_names])


def _tables(files: list[tuple[SourceFile, Path]], data: DataConfig) -> list[tuple[pa.Table, Path]]:
    """Reads the tables of the source in order, each with its part and its joined columns."""
    labels = iter([path for file, path in files if file.role == "labels"])
    joined = next(((read_file(path, read_options(data)), path) for file, path in files if file.role == "join"), None)
    found: list[tuple[pa.Table, Path]] = []
    for file, path in files:
        if file.role == "images":
            tables = [(read_images(path, next(labels), data.target, data.pixels), path)]
        elif file.role == "table" and is_pattern(file.uri):
            tables = [(_with_folder(table, data, place), place) for table, place in read_packed(path, read_options(data))]
        elif file.role == "table":
            table = read_file(path, read_options(data))
            tables = [(_with_folder(table, data, path) if data.format == "texts" else table, path)]
        else:
            continue
        if joined is not None:
            tables = [(_joined(table, place, *joined, data), place) for table, place in tables]
        found += [(with_recipe_names(table, data, place, file.part), place) for table, place in tables]
    return found


def with_recipe_names(table: pa.Table, data: DataConfig, path: Path, part: str | None) -> pa.Table:
    """Returns a table of the source with the recipe's column names, and a column with its part.

    Raises:
        DataError: a column in `data.rename` is missing, or the file has a column with the name of the part column.
    """
    table = _renamed(table, data, path)
    return _with_part(table, path, part) if data.parts else table


def _with_folder(table: pa.Table, data: DataConfig, path: Path) -> pa.Table:
    """
    Raises:
        DataError: the table has such a column already.
    """
    import pyarrow as pa

    if data.folder is None:
        return table
    if data.folder in table.column_names:
        raise DataError(
            f"the folder of each file becomes a column {data.folder!r}, but the file already has one",
            where=str(path),
            hint="choose another name in data.folder",
        )
    files = table["file"].to_pylist() if "file" in table.column_names else [str(path)] * table.num_rows
    return table.append_column(data.folder, pa.array([PurePosixPath(file).parent.name for file in files], pa.string()))


def _with_part(table: pa.Table, path: Path, part: str | None) -> pa.Table:
    """
    Raises:
        DataError: the table has such a column already.
    """
    import pyarrow as pa

    if PART in table.column_names:
        raise DataError(
            f"a source in parts gets a column {PART!r}, but the file already has one",
            where=str(path),
            hint=f"rename the column of the file (data.rename: {{{PART}: NAME}})",
        )
    return table.append_column(PART, pa.repeat(pa.scalar(part, pa.string()), table.num_rows))


def _joined(table: pa.Table, path: Path, other: pa.Table, other_path: Path, data: DataConfig) -> pa.Table:
    """Joins the columns of `other` to `table` by the key; values that `table` already has are kept."""
    import pyarrow as pa
    import pyarrow.compute as pc

    assert data.join is not None
    key = data.join.key
    for side, place in ((table, path), (other, other_path)):
        if key not in side.column_names:
            raise DataError(
                f"no column {key!r} to join by; {near_miss(key, side.column_names)}",
                where=str(place),
                hint="correct data.join.key in the recipe",
            )
    if len(other[key].unique()) != other.num_rows:
        raise DataError(
            f"{other.num_rows - len(other[key].unique()):,} rows repeat a {key}, so the join is ambiguous",
            where=str(other_path),
            hint="use a key that is unique for each row (data.join.key)",
        )
    try:
        rows = pc.index_in(table[key], other[key].combine_chunks().cast(table.schema.field(key).type))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"the {key} of the two tables cannot be compared: {error}", where=str(other_path), hint="correct data.join.key"
        ) from None
    for name in other.column_names:
        if name == key:
            continue
        values = other[name].take(rows)
        if name not in table.column_names:
            table = table.append_column(name, values)
        elif table[name].null_count:
            i = table.column_names.index(name)
            table = table.set_column(i, name, pc.coalesce(table[name], values.cast(table[name].type)))
    return table


def _concatenated(tables: list[tuple[pa.Table, Path]], data: DataConfig) -> pa.Table:
    """
    Raises:
        DataError: a required column is in some of the tables only, or has numbers in one and text in another.
    """
    import pyarrow as pa

    first, first_path = tables[0]
    for table, path in tables[1:]:
        for name in set(first.column_names) ^ set(table.column_names):
            if data.columns is None or name in data.columns:
                lacks = path if name in first.column_names else first_path
                raise DataError(
                    f"no column {name!r}, which is in {(first_path if lacks == path else path).name}",
                    where=str(lacks),
                    hint="leave it out (data.columns), or join it from another table (data.join)",
                )
    try:
        return pa.concat_tables([table for table, _ in tables], promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise DataError(
            f"the files of the source do not match: {str(error).splitlines()[0]}",
            where=redacted(data.origin),
            hint="correct the column in one of the files, or leave it out (data.columns)",
        ) from None
