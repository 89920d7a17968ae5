"""Reads a bounded sample of a table, and how its files have to be read."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.column_rules import ColumnRules, apply_rules
from headrace.data.formats.files import format_of, plain_schema, stream_file
from headrace.data.formats.label_lists import label_lists_as_text
from headrace.data.formats.opening import TABLE_ENDINGS, compression
from headrace.data.formats.options import ReadOptions
from headrace.data.formats.streams import TableStream
from headrace.data.formats.workbooks import sheet_names
from headrace.errors import DataError, UsageError, near_miss
from headrace.recipe.read import ReadConfig
from headrace.scaffold.dialect import recognise

if TYPE_CHECKING:
    import pyarrow as pa

HEAD_BYTES = 16 << 20
PIECE_BYTES = 1 << 20
PIECES = 16
"""A text file is sampled from its begin, and in pieces from places that are evenly distributed."""
SAMPLE_BYTES = HEAD_BYTES + PIECES * PIECE_BYTES
SAMPLE_ROWS = 100_000
TABLE_BYTES = 64 << 20
TABLES = ("csv", "tsv", "parquet", "arrow", "excel", "jsonl")
COMPRESSED = (".gz", ".zip", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Sample:
    """Rows of a table, with how they were read."""

    table: pa.Table
    """Columns that can be used; numbers, texts and times."""
    is_whole: bool
    """Whether these are all rows."""
    read: ReadConfig | None
    header: bool
    format: str | None
    """The recipe's `data.format`, where the name of the file does not tell it."""
    recognised: list[str] = field(default_factory=list)
    """How the file is written, in words."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that cannot be used, by name, each with the reason."""
    names: list[str] = field(default_factory=list)
    """All columns of the file, where it has no header."""
    rules: ColumnRules = field(default_factory=ColumnRules)
    """How the values were read."""


def read_sample(
    path: Path,
    given: dict[str, Any],
    header: bool | None = None,
    known: str | None = None,
    rules: ColumnRules | None = None,
    labels: Collection[str] = (),
) -> Sample:
    """Reads a sample of the table in `path`.

    Args:
        given: fields of `data.read` that the user has set; others are recognised.
        header: whether the first line of a text file holds names; None: to be recognised.
        known: the format, where the name of the file does not tell it.
        rules: how values are read; None: blanks are removed where a text file has them.
        labels: columns that may hold lists of labels, which become JSON text.

    Raises:
        DataError: the file is missing or empty, or cannot be read.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), hint="correct the path")
    if path.stat().st_size == 0:
        raise DataError("the file is empty (0 bytes)", where=str(path), hint="fetch or export it again")
    kind, is_by_name = _format(path, known)
    if kind in ("csv", "tsv"):
        return _text_sample(path, kind, is_by_name, given, header, rules)
    rules = rules or ColumnRules()
    read = ReadConfig(**given) if given else None
    is_named = header is not False
    options = ReadOptions(format=None if is_by_name else kind, read=read, header=is_named, rules=rules)
    with _sampled_lines(path, 0) if kind == "jsonl" else _as_it_is(path) as (copy, is_whole):
        table, all_rows = _rows(stream_file(copy, options))
    note = _sheet_note(path, read) if kind == "excel" else []
    plain, left_out = _usable(label_lists_as_text(table, labels), path)
    plain = with_rules(plain, rules, path)
    names = table.column_names if not is_named else []
    return Sample(plain, is_whole and all_rows, read, is_named, None if is_by_name else kind, note, left_out, names, rules)


def _format(path: Path, known: str | None) -> tuple[str, bool]:
    """Returns the format of a file, and whether its name tells it. Any other text is taken for a table."""
    name = path.name.lower()
    by_name = format_of(path)
    if known is not None:
        if known not in TABLES:
            raise UsageError(
                f"unknown format {known!r}; {near_miss(known, TABLES)}", where="--format", hint=f"use {', '.join(TABLES)}"
            )
        return known, by_name == known
    if by_name in ("csv", "tsv", "parquet", "arrow", "excel", "jsonl"):
        return by_name, True
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PAR1"):
        return "parquet", False
    if head.startswith(b"ARROW1"):
        return "arrow", False
    if compression(path) is None and head.lstrip().startswith(b"[") and name.endswith((".json", ".jsonl", ".ndjson")):
        raise DataError(
            "it is one JSON array, and one object per line is needed",
            where=str(path),
            hint=f"jq -c '.[]' {path.name} > {path.stem}.jsonl",
        )
    if compression(path) is None and head.lstrip().startswith(b"{"):
        return "jsonl", False
    bare = name
    for ending in COMPRESSED:
        bare = bare.removesuffix(ending)
    if bare.endswith(TABLE_ENDINGS) or b"\0" not in head or head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "csv", False
    raise DataError(
        f"unknown format of {path.name!r}",
        where=str(path),
        hint="use CSV, TSV, JSON lines, Parquet, Arrow or Excel; for a table in another file name its format: --format csv",
    )


def _sheet_note(path: Path, read: ReadConfig | None) -> list[str]:
    """Returns which sheet of a workbook was read, and the others."""
    names = sheet_names(path)
    chosen = read.sheet if read and read.sheet else names[0]
    others = [name for name in names if name != chosen]
    return [f"sheet {chosen!r}" + (f", not {', '.join(map(repr, others[:10]))} (--sheet)" if others else "")]


def with_rules(table: pa.Table, rules: ColumnRules, path: Path) -> pa.Table:
    """Returns rows whose values are read by `rules`, as numbers, texts and times."""
    read = apply_rules(table, rules, path)
    return read.cast(plain_schema(read.schema, path))


def _text_sample(
    path: Path, kind: str, is_by_name: bool, given: dict[str, Any], header: bool | None, rules: ColumnRules | None
) -> Sample:
    dialect = recognise(path, given, header)
    rules = rules if rules is not None else ColumnRules(trim=dialect.trim)
    read = dialect.read
    is_wide = read.encoding is not None and read.encoding.replace("-", "").startswith(("utf16", "utf32"))
    known = None if is_by_name else kind
    options = ReadOptions(format=known, read=read, header=dialect.header, rules=rules, only=_Everything())
    with _as_it_is(path) if is_wide else _sampled_lines(path, read.skip_lines) as (copy, is_whole):
        try:
            stream = stream_file(copy, options)
        except DataError:
            if is_whole:
                raise
            with _head(path) as (copy, is_whole):  # a piece began within a quoted value
                stream = stream_file(copy, options)
                table, all_rows = _rows(stream)
        else:
            table, all_rows = _rows(stream)
    if not table.num_rows:
        raise DataError(
            "no row could be read: the table is empty, or its first row is too large",
            where=str(path),
            hint="remove the large value; if a quote is not closed, set the quote: --quote CHARACTER",
        )
    plain, left_out = _usable(table, path)
    plain = with_rules(plain, rules, path)
    names = table.column_names if not dialect.header else []
    return Sample(plain, is_whole and all_rows, read, dialect.header, known, dialect.lines, left_out, names, rules)


class _Everything(frozenset[str]):
    """All names: of two columns with one name both are read, so that `new` can say that there are two."""

    def __contains__(self, name: object) -> bool:
        return True


@contextmanager
def _as_it_is(path: Path) -> Iterator[tuple[Path, bool]]:
    yield path, True


@contextmanager
def _head(path: Path) -> Iterator[tuple[Path, bool]]:
    with tempfile.TemporaryDirectory() as folder, path.open("rb") as file:
        copy = Path(folder) / path.name
        raw = file.read(HEAD_BYTES)
        copy.write_bytes(raw[: raw.rfind(b"\n") + 1])
        yield copy, False


@contextmanager
def _sampled_lines(path: Path, above: int) -> Iterator[tuple[Path, bool]]:
    """Yields the file itself if it is small, else a copy of lines from its begin and from evenly distributed places."""
    if compression(path) is not None:
        with _unpacked_head(path) as found:
            yield found
        return
    size = path.stat().st_size
    if size <= SAMPLE_BYTES:
        yield path, True
        return
    with tempfile.TemporaryDirectory() as folder, path.open("rb") as file:
        copy = Path(folder) / path.name
        with copy.open("wb") as out:
            head = file.read(HEAD_BYTES)
            out.write(head[: head.rfind(b"\n") + 1])
            for i in range(PIECES):
                file.seek(HEAD_BYTES + (size - HEAD_BYTES) * i // PIECES)
                piece = file.read(PIECE_BYTES)
                out.write(piece[piece.find(b"\n") + 1 : piece.rfind(b"\n") + 1])
        yield copy, False


@contextmanager
def _unpacked_head(path: Path) -> Iterator[tuple[Path, bool]]:
    from headrace.data.formats.opening import open_unpacked

    with tempfile.TemporaryDirectory() as folder, open_unpacked(path) as file:
        name = path.name
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        copy, done = Path(folder) / name, 0
        raw = b""
        with copy.open("wb") as out:
            while done < SAMPLE_BYTES and (raw := file.read(PIECE_BYTES)):
                out.write(raw)
                done += len(raw)
        if raw:  # not the end: the last line may be cut
            with copy.open("rb+") as out:
                out.seek(max(0, done - PIECE_BYTES))
                at = out.read().rfind(b"\n")
                out.truncate(max(0, done - PIECE_BYTES) + at + 1)
        yield copy, not raw


def _rows(stream: TableStream) -> tuple[pa.Table, bool]:
    """Returns rows of a table, evenly from all of its blocks, and whether these are all."""
    import pyarrow as pa

    found, size, seen = [stream.schema.empty_table()], 0, 0
    most = SAMPLE_ROWS
    every = max(1, -(-stream.rows // (4 * most)))
    for number, block in enumerate(stream.blocks()):
        seen += block.num_rows
        if number % every:
            continue
        found.append(block)
        size += block.nbytes
        if size > TABLE_BYTES or sum(part.num_rows for part in found) >= most:
            break
    table = pa.concat_tables(found)
    return table, table.num_rows == stream.rows


def _shape(kind: pa.DataType) -> str:
    from pyarrow import types

    if types.is_struct(kind):
        return f"the fields {', '.join(field.name for field in list(kind)[:5])}"
    if types.is_map(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "lists"
    return "bytes" if types.is_binary(kind) or types.is_large_binary(kind) else f"values of the type {kind}"


def _usable(table: pa.Table, path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Returns the columns that can be used, as numbers, texts and times, and why others cannot."""
    import pyarrow as pa

    left_out: dict[str, str] = {}
    seen: set[str] = set()
    keep: list[int] = []
    for i, one in enumerate(table.schema):
        name, _, again = one.name.partition("\0")
        if not name:
            left_out[f"column {i + 1}"] = "has no name, as row numbers in a saved table; give it a name in the file to use it"
        elif again or name in seen:
            left_out[f"{name} (column {i + 1})"] = (
                f"has the name of an earlier column, {name!r}; rename it in the file to use it"
            )
        else:
            try:
                plain_schema(pa.schema([one]), path)
            except DataError:
                left_out[name] = f"holds {_shape(one.type)}, no number, text or time; write them as columns to use them"
            else:
                keep.append(i)
        seen.add(name)
    usable = table.select(keep)
    return usable.cast(plain_schema(usable.schema, path)), left_out
