"""Reads CSV and TSV strictly: a file that is truncated or not valid text is refused with the row or line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from headrace.data.formats.codes import are_codes, keep_codes
from headrace.data.formats.encoding import as_utf8, unpacked
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_LIMIT_BYTES = 1 << 30
"""Types of columns are inferred from one block; up to this size that is the whole file."""


def read_csv(path: Path, kind: str, options: ReadOptions) -> pa.Table:
    """Reads the table in a CSV, TSV or TAB file, which may be compressed.

    Args:
        kind: the file's extension, for example `.tsv.gz`.

    Raises:
        DataError: it is truncated, has a row of another length, or is not text in its encoding.
    """
    import pyarrow as pa
    from pyarrow import csv

    raw = as_utf8(unpacked(path, kind), options.encoding, path)
    parse = csv.ParseOptions(delimiter="\t" if kind.startswith((".tsv", ".tab")) else ",", newlines_in_values=True)
    missing = options.rules.missing
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys([*options.text, *options.rules.texts], pa.string()),
        null_values=None if missing is None else list(missing),
        strings_can_be_null=True,
        # a quoted "NA" is text, an unquoted NA is missing, as R and pandas write it; a rule of the recipe means both
        quoted_strings_can_be_null=missing is not None,
        true_values=["true", "True", "TRUE"],
        false_values=["false", "False", "FALSE"],  # not 1 and 0, which are numbers
    )
    try:
        read = csv.ReadOptions(
            column_names=None if options.header else options.names,
            skip_rows_after_names=options.skip_rows,
            block_size=min(len(raw) + 1, BLOCK_LIMIT_BYTES),
        )
        table = csv.read_csv(pa.BufferReader(raw), read_options=read, parse_options=parse, convert_options=convert)
        _ = table.column_names  # decoded only when asked for
    except UnicodeDecodeError as error:
        _not_utf8(path, "the first line", bytes(error.object[:40]))
    except pa.ArrowInvalid as error:
        _explain_csv(path, raw, error, parse.delimiter, options)
    _refuse_undecodable(path, table, options)

    def texts(names: list[str]) -> pa.Table:
        convert.include_columns, convert.column_types = names, dict.fromkeys(names, pa.string())
        return csv.read_csv(pa.BufferReader(raw), read_options=read, parse_options=parse, convert_options=convert)

    return keep_codes(_quoted_gaps(table, [*options.text, *options.rules.texts]), raw, options.numbers, texts)


def _explain_csv(path: Path, raw: bytes, error: Exception, delimiter: str, options: ReadOptions) -> NoReturn:
    """Reads the file again on one thread, as Arrow then reports the number of the wrong row."""
    import pyarrow as pa
    from pyarrow import csv

    bad: list[tuple[int, int, int]] = []

    def note(row: csv.InvalidRow) -> str:
        bad.append((row.number or 0, row.actual_columns, row.expected_columns))
        return "skip"

    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        _not_utf8(path, "the first line", raw[:40])
    with contextlib.suppress(pa.ArrowInvalid, UnicodeDecodeError):  # the first error is reported
        csv.read_csv(
            io.BytesIO(raw),
            read_options=csv.ReadOptions(
                column_names=None if options.header else options.names,
                skip_rows_after_names=options.skip_rows,
                use_threads=False,
            ),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
        )
    if not bad:
        raise DataError(
            f"not valid CSV: {first_line(error)}", where=str(path), hint="correct the file, or export it again"
        ) from None
    row, actual, expected = bad[0]
    last = raw.count(b"\n") + (0 if raw.endswith(b"\n") else 1)
    cut = " (the last row: the file may be truncated)" if row >= last else ""
    what = f"row {row} has {actual} columns where {expected} were expected{cut}"
    if not options.header and row == 1:
        what = f"the file has {actual} columns, and the recipe names {expected}"
        raise DataError(what, where=str(path), hint="list every column in data.columns, or set data.header: true") from None
    raise DataError(what, where=f"{path}, row {row}", hint="correct that row, or fetch the file again") from None


def _quoted_gaps(table: pa.Table, text: Collection[str]) -> pa.Table:
    """Converts columns to numbers that were read as text because missing values were written as `""`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for i, name in enumerate(table.column_names):
        column = table.column(i)
        if name in text or not pa.types.is_string(column.type) or not pc.any(pc.equal(column, "")).as_py():
            continue
        filled = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
        if filled.null_count == len(filled) or are_codes(filled):
            continue
        for kind in (pa.int64(), pa.float64()):
            try:
                table = table.set_column(i, name, filled.cast(kind))
                break
            except pa.ArrowInvalid:
                continue  # some text is not such a number
    return table


def _refuse_undecodable(path: Path, table: pa.Table, options: ReadOptions) -> None:
    """Refuses a column that is not UTF-8, which Arrow reads as raw bytes, with its first such row."""
    import pyarrow as pa

    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_binary(column.type):
            continue
        for i, value in enumerate(column.to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError:
                _not_utf8(path, f"row {i + 1 + options.header + options.skip_rows}, column {name!r}", value)


def _not_utf8(path: Path, place: str, value: bytes) -> NoReturn:
    raise DataError(
        f"not UTF-8 text: {value[:40]!r}",
        where=f"{path}, {place}",
        hint="set data.encoding (for example cp1252), or save the file as UTF-8",
    ) from None
