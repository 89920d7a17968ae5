"""Types of columns that are read as text: found over all rows, block by block, and applied to each block."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.data.formats.codes import CODE, WHOLE
from headrace.data.formats.options import ReadOptions

if TYPE_CHECKING:
    import pyarrow as pa

LEADING_ZERO = r"^[+-]?0[0-9]"
BOOLEAN = "^(true|True|TRUE|false|False|FALSE)$"
"""Not 1 and 0, which are numbers."""
BLANKS = " \t"
CANDIDATES = ("bool", "int64", "date32[day]", "time32[s]", "timestamp[s]", "timestamp[ns]", "double", "string")
"""Types in the order in which Arrow's CSV reader tries them; the first that all values of a column have is taken."""
FAULTS_SHOWN = 10


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a file are written."""

    decimal: str = "."
    """The decimal sign."""
    thousands: str | None = None
    """The sign between groups of three digits."""


@dataclass
class ColumnTypes:
    """The type of one column: the candidates that all values so far have."""

    alive: list[str] = field(default_factory=lambda: list(CANDIDATES))
    has_values: bool = False
    has_empty_texts: bool = False
    has_codes: bool = False
    is_whole: bool = True
    """Whether all values are whole numbers."""

    @property
    def kind(self) -> str:
        """Name of the column's type in Arrow."""
        if not self.has_values:
            return "string" if self.has_empty_texts else "null"
        first = self.alive[0]  # a number would lose zeros, or digits
        return "string" if (first == "int64" and self.has_codes) or (first == "double" and self.is_whole) else first


class TextTypes:
    """Finds the types of the columns of a text file, and converts their texts."""

    def __init__(self, options: ReadOptions) -> None:
        read, rules = options.read, options.rules
        self._has_dialect = read is not None
        self._text = {*options.text, *rules.texts}
        self._codes, self._numbers = set(options.codes), set(options.numbers)
        self._trim, self._missing = rules.trim, rules.missing
        self._plain = NumberFormat(read.decimal, read.thousands) if read else NumberFormat()
        self._found: dict[str, ColumnTypes] = {}

    def see(self, table: pa.Table) -> None:
        """Narrows the types by the texts of one more block."""
        for name in table.column_names:
            types = self._found.setdefault(name, ColumnTypes(self._candidates(name)))
            values = self._texts(table[name], name)
            if values.null_count < len(values):
                self._narrow(types, values, name)

    def convert(self, table: pa.Table) -> pa.Table:
        """Returns a block that was seen, with its texts converted to the types that were found."""
        import pyarrow as pa

        columns = []
        for name in table.column_names:
            values, kind = self._texts(table[name], name), self._found[name].kind
            columns.append(pa.nulls(len(values)) if kind == "null" else self._parsed(values, kind))
        return pa.table(columns, names=table.column_names)

    def schema(self, names: Iterable[str]) -> pa.Schema:
        """Returns the types that were found."""
        import pyarrow as pa

        known = {"int64": pa.int64(), "double": pa.float64(), "string": pa.string(), "null": pa.null()}
        known |= {"bool": pa.bool_(), "date32[day]": pa.date32(), "time32[s]": pa.string()}
        known |= {f"timestamp[{unit}]": pa.timestamp(unit) for unit in ("s", "ns")}
        return pa.schema([pa.field(name, known[self._found[name].kind]) for name in names])

    def _candidates(self, name: str) -> list[str]:
        if name in self._text:
            return ["string"]
        # Times of a day stay as they are written, where the recipe says how the file is read.
        return [kind for kind in CANDIDATES if not self._has_dialect or kind != "time32[s]"]

    def _texts(self, column: pa.ChunkedArray, name: str) -> pa.Array:
        """Returns the texts as one array, trimmed and without those that mean a missing value."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = column.combine_chunks()
        values = values if isinstance(values, pa.Array) else pa.concat_arrays(values.chunks)
        if self._trim:
            values = pc.utf8_trim_whitespace(values)
        missing = self._missing
        if missing is None and self._trim and name not in self._text:
            missing = tuple(null_values())
        if missing:
            is_missing = pc.is_in(pc.utf8_trim_whitespace(values), pa.array(missing))
            values = pc.if_else(is_missing, pa.scalar(None, pa.string()), values)
        return values

    def _narrow(self, types: ColumnTypes, values: pa.Array, name: str) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if types.alive == ["string"] or len(types.alive) == 1:
            types.has_values = True
            return
        is_empty = pc.equal(values, "")
        if pc.any(is_empty).as_py():
            types.has_empty_texts = True
            if not self._has_dialect:  # as in a file that is read at once: only numbers have gaps that are written as ""
                types.alive = [kind for kind in types.alive if kind in ("int64", "double", "string")]
            values = pc.if_else(is_empty, pa.scalar(None, pa.string()), values)
        if values.null_count == len(values):
            return
        types.has_values = True
        keeps_zeros = (self._has_dialect or name in self._codes) and name not in self._numbers
        if keeps_zeros and {"int64", "double"} & set(types.alive) and _any_match(values, LEADING_ZERO):
            types.alive = [kind for kind in types.alive if kind not in ("int64", "double")]
        left, implied = [], set[str]()
        for kind in types.alive:
            if kind == "string" or kind in implied or self._parsed(values, kind) is not None:
                left.append(kind)
                # What is a whole number is a number, and what is a date is a time.
                implied |= {"double"} if kind == "int64" else {"timestamp[s]"} if kind == "date32[day]" else set()
        types.alive = left
        if name in self._numbers:
            types.is_whole = False
        elif "int64" in left:
            types.has_codes = types.has_codes or _any_match(values, CODE)
        elif types.is_whole and "double" in left:
            types.is_whole = _all_match(values, WHOLE)

    def _parsed(self, values: pa.Array, kind: str) -> pa.Array | None:
        """Returns the texts as values of the type `kind`, or None if one of them is not such a value."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if kind == "string":
            return values
        values = pc.ascii_trim(values, characters=BLANKS)
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
        try:
            if kind == "bool":
                return values.cast("bool") if _all_match(values, BOOLEAN) else None
            if kind in ("int64", "double"):
                found = values if self._plain == NumberFormat() else plain_numbers(values, self._plain)
                return None if found is None else found.cast(kind)
            return _clock_times(values) if kind == "time32[s]" else values.cast(self._arrow(kind))
        except pa.ArrowInvalid:
            return None

    def _arrow(self, kind: str) -> pa.DataType:
        import pyarrow as pa

        return pa.date32() if kind == "date32[day]" else pa.timestamp(kind[10:-1])


def _clock_times(values: pa.Array) -> pa.Array | None:
    """Returns times of a day as they are stored, `08:15:00`, or None if a text is none."""
    import pyarrow.compute as pc

    if not _all_match(values, r"^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$"):
        return None
    return pc.replace_substring_regex(values, pattern=r"^(..:..)$", replacement=r"\1:00")


def null_values() -> list[str]:
    """Returns the texts that always mean a missing value, as Arrow's CSV reader knows them."""
    from pyarrow import csv

    found: list[str] = csv.ConvertOptions().null_values
    return found


def number_pattern(rule: NumberFormat) -> str:
    """Returns a regular expression of the numbers that are written like this."""
    decimal, exponent = re.escape(rule.decimal), r"([eE][+-]?[0-9]+)?"
    plain = rf"([0-9]+({decimal}[0-9]*)?|{decimal}[0-9]+){exponent}"
    if rule.thousands is None:
        return rf"^[+-]?{plain}$"
    sign = r"[ \x{a0}\x{202f}]" if rule.thousands == " " else r"['’]" if rule.thousands == "'" else re.escape(rule.thousands)
    return rf"^[+-]?({plain}|[0-9]{{1,3}}({sign}[0-9]{{3}})+({decimal}[0-9]*)?)$"


def plain_numbers(values: pa.Array, rule: NumberFormat) -> pa.Array | None:
    """Returns the numbers as Arrow reads them, or None if some text is not a number that is written like this."""
    import pyarrow.compute as pc

    if not _all_match(values, number_pattern(rule)):
        return None
    if rule.thousands is not None:
        signs = {" ": r"[ \x{a0}\x{202f}]", "'": r"['’]"}.get(rule.thousands, re.escape(rule.thousands))
        values = pc.replace_substring_regex(values, pattern=signs, replacement="")
    return pc.replace_substring(values, pattern=",", replacement=".") if rule.decimal == "," else values


def _all_match(values: pa.Array, pattern: str) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py())


def _any_match(values: pa.Array, pattern: str) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(values, pattern), min_count=0).as_py())


def has_leading_zeros(values: pa.Array | pa.ChunkedArray) -> bool:
    """Returns whether a text is a code with a leading zero, such as `01234`."""
    return _any_match(values, LEADING_ZERO)
