"""Reads files as tables. A file that is truncated, empty or invalid is refused, never read in part."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn
from zipfile import ZipFile

from headrace.data.formats.column_rules import apply_rules
from headrace.data.formats.columnar import not_whole, stream_arrow, stream_parquet
from headrace.data.formats.delimited import read_csv
from headrace.data.formats.dialects import stream_delimited
from headrace.data.formats.encoding import as_utf8, unpacked
from headrace.data.formats.json_lines import stream_json_lines
from headrace.data.formats.label_lists import label_lists_as_text
from headrace.data.formats.molecules import graphs_as_text, read_molecules
from headrace.data.formats.options import ReadOptions
from headrace.data.formats.partitions import text_partitions, with_partitions
from headrace.data.formats.streams import TableStream
from headrace.data.formats.text_files import read_docstrings, read_lines, read_texts
from headrace.data.formats.text_values import has_leading_zeros
from headrace.data.formats.workbooks import read_sheet
from headrace.errors import DataError, first_line, near_miss
from headrace.files import visible_names

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENDINGS", "FORMATS", "format_of", "not_whole", "plain_schema", "read_file", "read_packed", "stream_file"]

ENDINGS = {
    "csv": (".csv", ".csv.gz", ".csv.zip", ".csv.bz2", ".csv.xz", ".csv.zst"),
    "tsv": (".tsv", ".tab", ".tsv.gz", ".tsv.zip", ".tsv.bz2", ".tsv.xz", ".tsv.zst"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "excel": (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"),
    "jsonl": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zip", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst"),
    "lines": (".txt", ".txt.gz"),
    "texts": (".txt.zip",),
    "docstrings": (".py", ".py.zip"),
    "sdf": (".sdf", ".sdf.gz"),
}
"""Formats and their file extensions. Text files, and the files of a pattern, are packed into one zip."""
STREAMED = (".bz2", ".xz", ".zst")
"""Compressions that are read as streams only."""
FORMATS = tuple(ending for endings in ENDINGS.values() for ending in endings)


def read_file(path: Path, options: ReadOptions | None = None) -> pa.Table:
    """Reads the table in `path`. The format is chosen by the extension, unless the options set it.

    Raises:
        DataError: the file is missing, of an unknown format, truncated, empty, not in its encoding, or has two columns of one
            name.
    """
    options = options or ReadOptions()
    if not path.is_file():
        _missing(path)
    if path.stat().st_size == 0:
        raise DataError("the file is empty (0 bytes)", where=str(path), hint="fetch or export it again")
    table = label_lists_as_text(_needed(graphs_as_text(_read(path, options)), options), options.label_lists)
    twice = sorted(name for name, count in Counter(table.column_names).items() if count > 1)
    if twice:
        raise DataError(f"column {twice[0]!r} appears twice", where=str(path), hint="rename one of the two columns in the file")
    is_untyped = _kind(_ending(path, options.format)) in ("csv", "tsv")
    return _plain_types(apply_rules(table, options.rules, path, is_untyped), path)


def read_packed(path: Path, options: ReadOptions) -> list[tuple[pa.Table, Path]]:
    """Reads the tables in the zip `path`, which contains the files of a pattern, each with its name; text files are one table.

    Raises:
        DataError: as `read_file`.
    """
    with ZipFile(path) as files, TemporaryDirectory() as folder:
        names = files.namelist()
        kind = options.format or _kind(_ending(Path(names[0]), None)).replace("lines", "texts")
        if kind in ("texts", "docstrings"):
            return [(read_file(path, replace(options, format=kind)), path)]
        found, text = [], {*text_partitions(map(Path, names)), *options.rules.text_columns}
        for number, name in enumerate(names):
            place = Path(folder) / str(number) / Path(name).name
            place.parent.mkdir()
            place.write_bytes(files.read(name))
            table = read_file(place, options)
            if options.read is not None:
                table = with_partitions(table, Path(name), options.only, text)
            found.append((table, Path(name)))
        return found


def format_of(path: Path) -> str | None:
    """Returns the format that the name of a file tells, or None."""
    name = path.name.lower()
    return next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)


def _kind(ending: str) -> str:
    return next(name for name, endings in ENDINGS.items() if ending in endings)


def _read(path: Path, options: ReadOptions) -> pa.Table:
    ending = _ending(path, options.format)
    match _kind(ending):
        case "csv" | "tsv" if options.read is None and not options.rules.trim and not ending.endswith(STREAMED):
            return _keep_codes(read_csv(path, ending, options), path, ending, options)
        case "jsonl" if options.read is None and not ending.endswith((*STREAMED, ".zip")):
            return _read_jsonl(path, ending, options)
        case "csv" | "tsv" | "jsonl" | "parquet" | "arrow" | "excel":
            return stream_file(path, options).table()
        case "lines":
            return read_lines(unpacked(path, ending), path, options)
        case "texts":
            return read_texts(path, options)
        case "sdf":
            return read_molecules(unpacked(path, ending), path, options)
        case _:
            return read_docstrings(path, options)


def stream_file(path: Path, options: ReadOptions) -> TableStream:
    """Returns the table in a CSV, TSV, JSON lines, Parquet, Arrow or Excel file as a stream of blocks. A sheet of a workbook
    is read as a whole.

    Raises:
        DataError: as `read_file`.
    """
    ending = _ending(path, options.format)
    match _kind(ending):
        case "csv" | "tsv":
            return stream_delimited(path, ending, options)
        case "jsonl":
            return stream_json_lines(path, options)
        case "parquet":
            return stream_parquet(path, options)
        case "arrow":
            return stream_arrow(path, options)
        case _:
            table = read_sheet(path, options)
            return TableStream(table.schema, table.num_rows, lambda: iter([table]))


def _needed(table: pa.Table, options: ReadOptions) -> pa.Table:
    """Returns the columns that are asked for; of two with one name the first."""
    if options.only is None:
        return table
    first = {name: i for i, name in reversed(list(enumerate(table.column_names))) if name in options.only}
    found = table.select(sorted(first.values()))
    return found if found.num_columns else table


def _keep_codes(table: pa.Table, path: Path, ending: str, options: ReadOptions) -> pa.Table:
    """Returns the table with those columns of `options.codes` as text that have a number with a leading zero."""
    import pyarrow.types as types

    numbers = {name for name in options.codes if name in table.column_names and types.is_integer(table[name].type)}
    numbers |= {name for name in options.codes if name in table.column_names and types.is_floating(table[name].type)}
    if not numbers:
        return table
    texts = read_csv(path, ending, replace(options, text=[*options.text, *numbers]))
    for name in numbers:
        if has_leading_zeros(texts[name]):
            table = table.set_column(table.column_names.index(name), name, texts[name])
    return table


def _missing(path: Path) -> NoReturn:
    if path.is_dir():
        raise DataError(
            "this is a folder, not a file", where=str(path), hint=f"use the path of a file in it ({', '.join(FORMATS)})"
        )
    names = visible_names(path.parent)
    message = f"no such file; {near_miss(path.name, names)}" if names else "no such file"
    raise DataError(message, where=str(path), hint="correct the path, or copy the file there")


def _ending(path: Path, known: str | None) -> str:
    """Returns the extension that decides how `path` is read; for a given format, the one with the compression of the name.

    Raises:
        DataError: the format is neither in the name nor in the recipe.
    """
    name = path.name.lower()
    if known is not None:
        fitting = sorted((e for e in ENDINGS[known] if name.endswith(e[e.rindex(".") :])), key=len, reverse=True)
        return next((e for e in fitting if e.endswith((".gz", ".zip"))), ENDINGS[known][0])
    found = next((ending for ending in sorted(FORMATS, key=len, reverse=True) if name.endswith(ending)), None)
    if found is None:
        raise DataError(
            f"unknown format of {path.name!r}",
            where=str(path),
            hint=f"set data.format ({', '.join(ENDINGS)}), or use a file name that ends in " + ", ".join(FORMATS),
        )
    return found


def _read_jsonl(path: Path, ending: str, options: ReadOptions) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json

    raw = as_utf8(unpacked(path, ending), options.encoding, path)
    try:
        raw.decode()  # Arrow would take any bytes
        return json.read_json(pa.BufferReader(raw), read_options=json.ReadOptions(block_size=min(len(raw) + 1, (1 << 31) - 1)))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not UTF-8 text: {raw[error.start : error.start + 40]!r}",
            where=f"{path}, line {line}",
            hint="set data.encoding to the encoding of the file",
        ) from None
    except pa.ArrowInvalid as error:
        raise DataError(
            f"not valid JSON lines: {first_line(error)}",
            where=str(path),
            hint="write one JSON object per line, all with the same fields",
        ) from None


def _plain_types(table: pa.Table, path: Path) -> pa.Table:
    """Converts every column to a number, a text, a time, or true and false: the types that later steps support."""
    import pyarrow as pa

    try:
        return table.cast(plain_schema(table.schema, path))
    except pa.ArrowException as error:
        raise DataError(
            f"a value does not match the type of its column: {first_line(error)}",
            where=str(path),
            hint="correct the value in the file",
        ) from None


def plain_schema(schema: pa.Schema, path: Path) -> pa.Schema:
    """Returns the types in which columns of `schema` are stored.

    Raises:
        DataError: a column holds neither numbers, texts nor times.
    """
    import pyarrow as pa

    types = pa.types
    plain = []
    for field in schema:
        kind = field.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_large_string(kind) or types.is_string_view(kind) or types.is_time(kind):
            kind = pa.string()
        elif types.is_decimal(kind) or types.is_float16(kind) or types.is_null(kind):
            kind = pa.float64()  # an empty column becomes missing numbers
        elif types.is_date(kind):
            kind = pa.timestamp("us")
        elif types.is_timestamp(kind):
            kind = pa.timestamp("us", tz=kind.tz)
        elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_string(kind) or types.is_boolean(kind)):
            raise DataError(
                f"column {field.name!r} holds {field.type}, which is not a number, text or time",
                where=str(path),
                hint="leave it out (data.columns), or write it as several columns",
            )
        plain.append(pa.field(field.name, kind))
    return pa.schema(plain)
