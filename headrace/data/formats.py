"""Reads CSV and Parquet files strictly: a file that is cut, empty or not text is refused with its place, never half-read."""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from headrace.errors import DataError, near_miss

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".csv", ".csv.gz", ".csv.zip", ".tsv", ".tab", ".tsv.gz", ".parquet", ".pq")
UNPACKED_LIMIT_BYTES = 8 << 30
"""A compressed file that unpacks to more is refused: a zip bomb, or a file that wants to be Parquet."""
BLOCK_LIMIT_BYTES = 1 << 30
"""Types of columns are told from one block; up to this size that is the whole file."""


def read_file(path: Path, header: bool = True, names: list[str] | None = None, text: Collection[str] = ()) -> pa.Table:
    """The table in `path`, whose name says its format.

    Args:
        header: whether the first line of a CSV names its columns; else `names` does, in order.
        text: columns to read as text although they may look like numbers (codes with leading zeros).

    Raises:
        DataError: missing, of an unknown format, cut in the middle, empty, not UTF-8, or with a name standing twice.
    """
    if not path.is_file():
        _missing(path)
    if path.stat().st_size == 0:
        raise DataError("the file is empty (0 bytes)", where=str(path), mend="fetch or export it again")
    kind = _format(path)
    table = _read_parquet(path) if kind in (".parquet", ".pq") else _read_csv(path, kind, header, names, text)
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise DataError(
            f"column {twice[0]!r} stands there twice", where=str(path), mend="rename one of the two columns in the file"
        )
    return _plain_types(table, path)


def _missing(path: Path) -> NoReturn:
    if path.is_dir():
        raise DataError("this is a folder, not a file", where=str(path), mend=f"name a file in it ({', '.join(FORMATS)})")
    beside = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
    said = f"no such file; {near_miss(path.name, beside[:50])}" if beside else "no such file"
    raise DataError(said, where=str(path), mend="correct the path, or bring the file there")


def _format(path: Path) -> str:
    name = path.name.lower()
    found = next((ending for ending in sorted(FORMATS, key=len, reverse=True) if name.endswith(ending)), None)
    if found is None:
        raise DataError(
            f"cannot tell the format of {path.name!r}", where=str(path), mend="use a name ending in " + ", ".join(FORMATS)
        )
    return found


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"no whole Parquet file: {_first_line(error)}",
            where=str(path),
            mend="fetch or export it again; it may have been cut in the middle",
        ) from None


def _read_csv(path: Path, kind: str, header: bool, names: list[str] | None, text: Collection[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    raw = _unpacked(path, kind)
    parse = csv.ParseOptions(delimiter="\t" if kind.startswith((".tsv", ".tab")) else ",", newlines_in_values=True)
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(text, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,  # a quoted "NA" is a text, a bare NA is nothing: so R and pandas write it
        true_values=[],
        false_values=[],  # true and false stay text: a category like any other
    )
    block = min(len(raw) + 1, BLOCK_LIMIT_BYTES)
    try:
        read = csv.ReadOptions(column_names=None if header else names, block_size=block)
        table = csv.read_csv(pa.BufferReader(raw), read_options=read, parse_options=parse, convert_options=convert)
        _ = table.column_names  # decoded only when asked for
    except UnicodeDecodeError as error:
        _not_utf8(path, "the first line", bytes(error.object[:40]))
    except pa.ArrowInvalid as error:
        _explain_csv(path, raw, error, parse.delimiter, header, names)
    _refuse_undecodable(path, table, header)
    return _quoted_gaps(table, text)


def _unpacked(path: Path, kind: str) -> bytes:
    """The text of a CSV, out of its gzip or zip; both carry checksums, so a cut shows."""
    try:
        if kind.endswith(".gz"):
            with gzip.open(path) as packed:
                raw = packed.read(UNPACKED_LIMIT_BYTES + 1)
        elif kind.endswith(".zip"):
            raw = _unzipped(path)
        else:
            return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(
            f"the compressed file is cut or damaged: {_first_line(error)}", where=str(path), mend="fetch or export it again"
        ) from None
    if len(raw) > UNPACKED_LIMIT_BYTES:
        raise DataError(f"unpacks to more than {UNPACKED_LIMIT_BYTES >> 30} GiB", where=str(path), mend="write it as Parquet")
    return raw


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and m.filename.lower().endswith((".csv", ".tsv", ".tab"))]
        if len(members) != 1:
            raise DataError(
                f"the zip holds {len(members)} tables, and one was expected",
                where=str(path),
                mend="unpack it and name the table you mean",
            )
        with archive.open(members[0]) as packed:
            return packed.read(UNPACKED_LIMIT_BYTES + 1)


def _explain_csv(path: Path, raw: bytes, error: Exception, delimiter: str, header: bool, names: list[str] | None) -> NoReturn:
    """Reads once more, on one thread: only then does Arrow know the number of the row that does not fit."""
    import pyarrow as pa
    from pyarrow import csv

    bad: list[tuple[int, int, int]] = []

    def note(row: csv.InvalidRow) -> str:
        bad.append((row.number or 0, row.actual_columns, row.expected_columns))
        return "skip"

    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        _not_utf8(path, "the first line", raw[:40])
    with contextlib.suppress(pa.ArrowInvalid, UnicodeDecodeError):  # the first error stands
        csv.read_csv(
            io.BytesIO(raw),
            read_options=csv.ReadOptions(column_names=None if header else names, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
        )
    if not bad:
        raise DataError(
            f"no valid CSV: {_first_line(error)}", where=str(path), mend="correct the file, or export it again"
        ) from None
    row, actual, expected = bad[0]
    last = raw.count(b"\n") + (0 if raw.endswith(b"\n") else 1)
    cut = " (the last row: the file may have been cut in the middle)" if row >= last else ""
    what = f"row {row} has {actual} columns where {expected} were expected{cut}"
    if not header and row == 1:
        what = f"the file has {actual} columns, and the recipe names {expected}"
        raise DataError(what, where=str(path), mend="name every column in data.columns, or set data.header: true") from None
    raise DataError(what, where=f"{path}, row {row}", mend="correct that row, or fetch the file again") from None


def _quoted_gaps(table: pa.Table, text: Collection[str]) -> pa.Table:
    """Columns of numbers whose gaps were written as quoted nothing (`""`) and so were taken for text: numbers again."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for i, name in enumerate(table.column_names):
        column = table.column(i)
        if name in text or not pa.types.is_string(column.type) or not pc.any(pc.equal(column, "")).as_py():
            continue
        filled = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        if filled.null_count == len(filled):
            continue
        for kind in (pa.int64(), pa.float64()):
            try:
                table = table.set_column(i, name, filled.cast(kind))
                break
            except pa.ArrowInvalid:
                continue  # some text is no such number
    return table


def _refuse_undecodable(path: Path, table: pa.Table, header: bool) -> None:
    """Arrow reads a column that is not UTF-8 as raw bytes; such a column is refused with its first such row."""
    import pyarrow as pa

    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_binary(column.type):
            continue
        for i, value in enumerate(column.to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                _not_utf8(path, f"row {i + 1 + header}, column {name!r}", value)


def _not_utf8(path: Path, place: str, value: bytes) -> NoReturn:
    raise DataError(
        f"not UTF-8 text: {value[:40]!r}",
        where=f"{path}, {place}",
        mend="save the file as UTF-8, such as: iconv -f cp1252 -t utf-8 FILE > FILE.csv",
    ) from None


def _plain_types(table: pa.Table, path: Path) -> pa.Table:
    """Every column as a number, a text or a time: the types that later steps know."""
    import pyarrow as pa

    types = pa.types
    plain = []
    for field in table.schema:
        kind = field.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_large_string(kind) or types.is_string_view(kind) or types.is_boolean(kind) or types.is_time(kind):
            kind = pa.string()
        elif types.is_decimal(kind) or types.is_float16(kind) or types.is_null(kind):
            kind = pa.float64()  # a column of nothing becomes missing numbers
        elif types.is_date(kind):
            kind = pa.timestamp("us")
        elif types.is_timestamp(kind):
            kind = pa.timestamp("us", tz=kind.tz)
        elif not (types.is_integer(kind) or types.is_floating(kind) or types.is_string(kind)):
            raise DataError(
                f"column {field.name!r} holds {field.type}, which is no number, text or time",
                where=str(path),
                mend="leave it out (data.columns), or write it as plain columns",
            )
        plain.append(pa.field(field.name, kind))
    try:
        return table.cast(pa.schema(plain))
    except pa.ArrowException as error:
        raise DataError(
            f"a value does not fit its column: {_first_line(error)}", where=str(path), mend="correct the value in the file"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0][:200]
