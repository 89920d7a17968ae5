"""CSV and its kin, read strictly: a file that is cut, or not the text it is said to be, is refused with its place."""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from headrace.data.formats.options import ReadOptions, first_line
from headrace.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

UNPACKED_LIMIT_BYTES = 8 << 30
"""A compressed file that unpacks to more is refused: a zip bomb, or a file that wants to be Parquet."""
BLOCK_LIMIT_BYTES = 1 << 30
"""Types of columns are told from one block; up to this size that is the whole file."""


def read_csv(path: Path, kind: str, reading: ReadOptions) -> pa.Table:
    """The table in a CSV, TSV or TAB file, perhaps compressed.

    Args:
        kind: the ending that says its form, such as `.tsv.gz`.

    Raises:
        DataError: it is cut, holds a row of another length, or is no text in its encoding.
    """
    import pyarrow as pa
    from pyarrow import csv

    raw = as_utf8(unpacked(path, kind), reading.encoding, path)
    parse = csv.ParseOptions(delimiter="\t" if kind.startswith((".tsv", ".tab")) else ",", newlines_in_values=True)
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(reading.text, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,  # a quoted "NA" is a text, a bare NA is nothing: so R and pandas write it
        true_values=[],
        false_values=[],  # true and false stay text: a category like any other
    )
    try:
        read = csv.ReadOptions(
            column_names=None if reading.header else reading.names,
            skip_rows_after_names=reading.skip_rows,
            block_size=min(len(raw) + 1, BLOCK_LIMIT_BYTES),
        )
        table = csv.read_csv(pa.BufferReader(raw), read_options=read, parse_options=parse, convert_options=convert)
        _ = table.column_names  # decoded only when asked for
    except UnicodeDecodeError as error:
        _not_utf8(path, "the first line", bytes(error.object[:40]))
    except pa.ArrowInvalid as error:
        _explain_csv(path, raw, error, parse.delimiter, reading)
    _refuse_undecodable(path, table, reading)
    return _quoted_gaps(table, reading.text)


def as_utf8(raw: bytes, encoding: str, path: Path) -> bytes:
    """`raw` in UTF-8, whatever it was written in.

    Raises:
        DataError: a byte that stands for nothing in `encoding`; it says which and in which line.
    """
    if encoding.lower().replace("-", "").replace("_", "") == "utf8":
        return raw  # checked where its columns are decoded, so that the message can name one
    try:
        return raw.decode(encoding).encode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"byte 0x{raw[error.start]:02x} is no {encoding} text: {raw[max(0, error.start - 20) : error.start + 20]!r}",
            where=f"{path}, line {line}",
            hint="name the encoding that the file was written in (data.encoding), such as cp1252, mac_roman or latin-1",
        ) from None


def unpacked(path: Path, kind: str) -> bytes:
    """The bytes of a file, out of its gzip or zip where its ending says so; both carry checksums, so a cut shows.

    Raises:
        DataError: it is cut or damaged, or unpacks to too much.
    """
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
            f"the compressed file is cut or damaged: {first_line(error)}", where=str(path), hint="fetch or export it again"
        ) from None
    if len(raw) > UNPACKED_LIMIT_BYTES:
        raise DataError(f"unpacks to more than {UNPACKED_LIMIT_BYTES >> 30} GiB", where=str(path), hint="write it as Parquet")
    return raw


def _unzipped(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = [
            m for m in archive.infolist() if not m.is_dir() and m.filename.lower().endswith((".csv", ".tsv", ".tab", ".jsonl"))
        ]
        if len(members) != 1:
            raise DataError(
                f"the zip holds {len(members)} tables, and one was expected",
                where=str(path),
                hint="unpack it and name the table you mean",
            )
        with archive.open(members[0]) as packed:
            return packed.read(UNPACKED_LIMIT_BYTES + 1)


def _explain_csv(path: Path, raw: bytes, error: Exception, delimiter: str, reading: ReadOptions) -> NoReturn:
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
            read_options=csv.ReadOptions(
                column_names=None if reading.header else reading.names,
                skip_rows_after_names=reading.skip_rows,
                use_threads=False,
            ),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
        )
    if not bad:
        raise DataError(
            f"no valid CSV: {first_line(error)}", where=str(path), hint="correct the file, or export it again"
        ) from None
    row, actual, expected = bad[0]
    last = raw.count(b"\n") + (0 if raw.endswith(b"\n") else 1)
    cut = " (the last row: the file may have been cut in the middle)" if row >= last else ""
    what = f"row {row} has {actual} columns where {expected} were expected{cut}"
    if not reading.header and row == 1:
        what = f"the file has {actual} columns, and the recipe names {expected}"
        raise DataError(what, where=str(path), hint="name every column in data.columns, or set data.header: true") from None
    raise DataError(what, where=f"{path}, row {row}", hint="correct that row, or fetch the file again") from None


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


def _refuse_undecodable(path: Path, table: pa.Table, reading: ReadOptions) -> None:
    """Arrow reads a column that is not UTF-8 as raw bytes; such a column is refused with its first such row."""
    import pyarrow as pa

    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_binary(column.type):
            continue
        for i, value in enumerate(column.to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                _not_utf8(path, f"row {i + 1 + reading.header + reading.skip_rows}, column {name!r}", value)


def _not_utf8(path: Path, place: str, value: bytes) -> NoReturn:
    raise DataError(
        f"not UTF-8 text: {value[:40]!r}",
        where=f"{path}, {place}",
        hint="name its encoding (data.encoding: cp1252), or save the file as UTF-8",
    ) from None
