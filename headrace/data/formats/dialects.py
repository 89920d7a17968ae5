"""Reads text tables of any dialect in bounded memory: twice, first for the types of the columns, then for the rows."""

from __future__ import annotations

import csv as text_csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from headrace.data.formats.opening import Utf8Stream, open_unpacked
from headrace.data.formats.options import ReadOptions
from headrace.data.formats.streams import BLOCK_BYTES, TableStream
from headrace.data.formats.text_values import FAULTS_SHOWN, TextTypes
from headrace.errors import DataError, first_line, near_miss

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import csv

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes", ":": "colons", " ": "spaces", "~": "tildes"}
READ_BYTES = 2 << 20
"""Size of a block as long as all rows fit into one: Arrow reads 32 blocks ahead of the one that is in use."""
HEADER_CHARACTERS = 4 << 20
"""Longest header line."""


def stream_delimited(path: Path, kind: str, options: ReadOptions) -> TableStream:
    """Reads a text table once for its types, and returns it as a stream.

    Args:
        kind: the file's extension, for example `.tsv.gz`.

    Raises:
        DataError: it is truncated, has rows of another length, is not text in its encoding, or lacks a column.
    """
    reader = _Reader(path, kind, options)
    try:
        types, rows = _types_of(reader, options)
    except _LargeRow:
        reader.block_bytes = BLOCK_BYTES
        types, rows = _types_of(reader, options)
    return TableStream(types.schema(reader.wanted), rows, lambda: (types.convert(block) for block in reader.blocks()))


def _types_of(reader: _Reader, options: ReadOptions) -> tuple[TextTypes, int]:
    """Returns the types of the columns, and the number of rows.

    Raises:
        _LargeRow: a row needs larger blocks than the reader's.
    """
    types, rows = TextTypes(options), 0
    for block in reader.blocks():
        types.see(block)
        rows += block.num_rows
    if rows == 0:
        types.see(reader.empty())
    return types, rows


class _LargeRow(Exception):
    """A row is larger than a block, and a larger block is allowed."""


class _Reader:
    """One text file, its dialect and its columns."""

    def __init__(self, path: Path, kind: str, options: ReadOptions) -> None:
        self.path = path
        self.options = options
        self.block_bytes = min(READ_BYTES, BLOCK_BYTES)
        read = options.read
        by_name = "\t" if kind.startswith((".tsv", ".tab")) else ","
        self.separator = (read.separator if read else None) or by_name
        self.quote = read.quote if read else '"'
        self.escape = read.escape if read else None
        self.header = self._first_row()
        self.names = self._names()
        self.wanted = self._wanted()

    def blocks(self) -> Iterator[pa.Table]:
        """Yields the wanted columns as texts.

        Raises:
            _LargeRow: a row is larger than `block_bytes`, which may be larger.
        """
        import pyarrow as pa
        from pyarrow import csv

        stream = self._open()
        try:
            opened = csv.open_csv(
                pa.PythonFile(io.BufferedReader(stream, 1 << 20), mode="r"),
                read_options=csv.ReadOptions(
                    column_names=self.names,
                    skip_rows_after_names=self.options.header + self.options.skip_rows,
                    block_size=self.block_bytes,
                ),
                parse_options=self._parse_options(),
                convert_options=self._convert_options(),
            )
            for batch in opened:
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, DataError, UnicodeError) as error:
            if stream.error is not None:
                raise stream.error from None
            if isinstance(error, DataError):
                raise
            if "Empty CSV file" in str(error):
                return
            if self.block_bytes < BLOCK_BYTES and _is_large_row(error):
                raise _LargeRow from None
            self._explain(error)
        finally:
            stream.close()

    def empty(self) -> pa.Table:
        import pyarrow as pa

        return pa.table({name: pa.array([], pa.string()) for name in self.wanted})

    def _open(self) -> Utf8Stream:
        return Utf8Stream(open_unpacked(self.path), self.path, self.options)

    def _parse_options(self, handler: Any = None) -> csv.ParseOptions:
        from pyarrow import csv

        return csv.ParseOptions(
            delimiter=self.separator,
            quote_char=self.quote or False,
            double_quote=bool(self.quote) and self.escape is None,
            escape_char=self.escape or False,
            newlines_in_values=True,
            invalid_row_handler=handler,
        )

    def _convert_options(self) -> csv.ConvertOptions:
        import pyarrow as pa
        from pyarrow import csv

        missing = self.options.rules.missing
        return csv.ConvertOptions(
            column_types=dict.fromkeys(self.names, pa.string()),
            include_columns=self.wanted,
            null_values=None if missing is None else list(missing),
            strings_can_be_null=True,
            # a quoted "NA" is text, an unquoted NA is missing, as R and pandas write it; a rule of the recipe means both
            quoted_strings_can_be_null=missing is not None,
        )

    def _first_row(self) -> list[str]:
        """Returns the values of the first line that is neither a comment nor skipped."""
        stream = self._open()
        try:
            text = io.TextIOWrapper(io.BufferedReader(stream, 1 << 16), encoding="utf-8", newline="")
            limit = text_csv.field_size_limit(HEADER_CHARACTERS)
            rows = text_csv.reader(
                iter(lambda: text.readline(HEADER_CHARACTERS), ""),
                delimiter=self.separator,
                quotechar=self.quote or None,
                escapechar=self.escape,
                doublequote=self.escape is None,
                quoting=text_csv.QUOTE_MINIMAL if self.quote else text_csv.QUOTE_NONE,
            )
            try:
                return next((row for row in rows if row), [])
            finally:
                text_csv.field_size_limit(limit)
        except text_csv.Error as error:
            raise DataError(
                f"the first line is not a row of a table: {first_line(error)}",
                where=str(self.path),
                hint="set data.read.separator, quote and skip_lines to what the file has",
            ) from None
        except (DataError, UnicodeError):
            if stream.error is not None:
                raise stream.error from None
            raise
        finally:
            stream.close()

    def _names(self) -> list[str]:
        """Returns a different name for each column: of two with one name the first keeps it."""
        if not self.header:
            raise DataError("the file has no rows", where=str(self.path), hint="fetch or export it again")
        if not self.options.header:
            return self._given_names()
        names = [name.strip() if self.options.rules.trim else name for name in self.header]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        needed = [n for n in twice if self.options.only is None and n]
        if needed:
            raise DataError(
                f"column {needed[0]!r} appears twice" + (f", and so do {needed[1:10]}" if needed[1:] else ""),
                where=str(self.path),
                hint="rename one of the two columns in the file, or list the columns to keep in data.columns",
            )
        seen: Counter[str] = Counter()
        found = []
        for name in names:
            seen[name] += 1
            found.append(name if seen[name] == 1 else f"{name}\0{seen[name]}")
        return found

    def _given_names(self) -> list[str]:
        names = self.options.names or [f"column_{i + 1}" for i in range(len(self.header))]
        if len(names) != len(self.header):
            raise DataError(
                f"the file has {len(self.header)} columns, and the recipe names {len(names)}",
                where=str(self.path),
                hint="list every column in data.columns, or set data.header: true",
            )
        return names

    def _wanted(self) -> list[str]:
        if self.options.only is None:
            return self.names
        found = [name for name in self.names if name in self.options.only]
        if len(self.names) == 1 and not found and (other := self._other_separator()):
            raise DataError(
                f"the first line has one column, and looks separated by {SEPARATORS[other]}: {self.names[0][:60]!r}",
                where=str(self.path),
                hint=f"set data.read.separator: {other!r}, or export the file with {SEPARATORS[self.separator]}",
            )
        if not found:
            near = near_miss(next(iter(self.options.only), ""), self.names[:200])
            raise DataError(
                f"none of the recipe's columns is in the file; {near}",
                where=str(self.path),
                hint="correct data.columns in the recipe, data.read.skip_lines if the header is in a later line, or use "
                "another file",
            )
        return found

    def _other_separator(self) -> str | None:
        counts = {one: self.names[0].count(one) for one in SEPARATORS if one not in (self.separator, " ", ":")}
        best = max(counts, key=lambda one: counts[one])
        return best if counts[best] else None

    def _explain(self, error: Exception) -> NoReturn:
        """Reads the file again on one thread, as Arrow then reports the numbers of the wrong rows."""
        import pyarrow as pa
        from pyarrow import csv

        bad: list[tuple[int, int, str]] = []
        count = 0
        last = 0

        def note(row: csv.InvalidRow) -> str:
            nonlocal count, last
            count += 1
            last = row.number or 0
            if len(bad) < FAULTS_SHOWN:
                bad.append((row.number or 0, row.actual_columns, row.text if isinstance(row.text, str) else ""))
            return "skip"

        stream, rows = self._open(), 0
        try:
            opened = csv.open_csv(
                pa.PythonFile(io.BufferedReader(stream, 1 << 20), mode="r"),
                read_options=csv.ReadOptions(column_names=self.names, block_size=BLOCK_BYTES, use_threads=False),
                parse_options=self._parse_options(note),
                convert_options=self._convert_options(),
            )
            for batch in opened:
                rows += batch.num_rows
        except (pa.ArrowException, UnicodeError, DataError):
            pass  # the first error is reported
        finally:
            stream.close()
        if not bad:
            self._refuse(error)
        above = self.options.read.skip_lines if self.options.read else 0
        expected = len(self.names)
        places = ", ".join(f"row {number + above} has {columns}" for number, columns, _ in bad)
        more = f" and {count - len(bad):,} more rows" if count > len(bad) else ""
        is_last = count == 1 and last >= rows + count
        cut = " (the last row: the file may be truncated, or has lines below the table)" if is_last else ""
        if (other := self._other_separator()) and expected == 1:
            hint = f"the first line looks separated by {SEPARATORS[other]}: set data.read.separator: {other!r}"
        elif is_last:
            hint = "fetch the file again if it is truncated, or set data.read.skip_last to the number of lines below the table"
        else:
            hint = "correct those rows, or set data.read.separator, quote, comment or skip_lines to what the file has"
        raise DataError(
            f"{expected} columns were expected, and {places}{more}{cut}",
            where=f"{self.path}, row {bad[0][0] + above}",
            hint=hint,
        ) from None

    def _refuse(self, error: Exception) -> NoReturn:
        if _is_large_row(error):
            raise DataError(
                f"a row is larger than {BLOCK_BYTES >> 20} MB",
                where=str(self.path),
                hint="remove the large value; if a quote is not closed, set data.read.quote to what the file has",
            ) from None
        raise DataError(
            f"not a valid table: {first_line(error)}", where=str(self.path), hint="correct the file, or export it again"
        ) from None


def _is_large_row(error: Exception) -> bool:
    return re.search("straddl|block boundar|too big|overflow|capacity", str(error)) is not None
