"""Reads the columns of a table by the recipe's rules (`data.missing`, `data.trim`, `data.parse`, `data.times`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import DataError
from headrace.runtime.values import EPOCH, ValueRule, category_text

if TYPE_CHECKING:
    import pyarrow as pa

WHOLE_OR_FRACTION = re.compile(r"-?[0-9]+(\.[0-9]+)?")
MAX_PLACES = 10
"""Rows that are named of those whose values do not fit a rule."""


@dataclass(frozen=True)
class ColumnRules:
    """How values are read, by the names of the columns in the file."""

    missing: tuple[str, ...] | None = None
    """Texts that count as missing; None: what the file's format has as missing."""
    trim: bool = False
    rules: Mapping[str, ValueRule] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """Columns that a file without types has to give as text."""
        return list(self.rules)

    @property
    def text_columns(self) -> list[str]:
        """Columns that a rule makes text."""
        return [name for name, rule in self.rules.items() if rule.type == "text"]


def apply_rules(table: pa.Table, rules: ColumnRules, path: Path, untyped: bool = False, first_row: int = 1) -> pa.Table:
    """Returns the table with its texts trimmed, its missing values as null, and the types that the rules give.

    Args:
        untyped: whether the file has no types, as CSV: a column of texts that holds only numbers without its missing values
            then becomes numbers.
        first_row: number of the table's first row, for messages.

    Raises:
        DataError: values do not fit a rule; the message names up to ten rows.
    """
    import pyarrow as pa

    if rules.missing is None and not rules.trim and not rules.rules:
        return table
    numbers = [text for text in rules.missing or () if WHOLE_OR_FRACTION.fullmatch(text)]
    for i, name in enumerate(table.column_names):
        column, rule = table.column(i), rules.rules.get(name)
        plain = _plain_texts(column)
        if pa.types.is_string(plain.type):
            cleaned = _cleaned(plain, rules)
            if untyped and rule is None and not cleaned.equals(plain):
                cleaned = _numbers_if_all(cleaned)
            plain = cleaned
        elif numbers:
            plain = _without_numbers(plain, numbers)
        if rule is not None:
            plain = _read(plain, rule, name, path, first_row)
        if plain is not column:
            table = table.set_column(i, name, plain)
    return table


def _plain_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns texts of every Arrow type, also as a dictionary, as plain ones; other columns as they are."""
    import pyarrow as pa

    types, kind = pa.types, column.type
    value = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    return column.cast(pa.string()) if is_text and not types.is_string(kind) else column


def _cleaned(column: pa.ChunkedArray, rules: ColumnRules) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if rules.missing:
        bare = pc.utf8_trim_whitespace(column)
        gaps = pc.is_in(bare, pa.array(list(rules.missing), pa.string()))
        column = pc.if_else(gaps, pa.scalar(None, pa.string()), column)
    return pc.utf8_trim_whitespace(column) if rules.trim else column


def _without_numbers(column: pa.ChunkedArray, missing: list[str]) -> pa.ChunkedArray:
    """Returns a column of numbers without those that mean a missing value, such as -999."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column
    values = []
    for text in missing:
        try:
            values.append(pa.scalar(float(text)).cast(column.type))
        except pa.ArrowInvalid:
            continue  # no such number in this type
    return pc.if_else(pc.is_in(column, pa.array(values, column.type)), pa.scalar(None, column.type), column)


def _numbers_if_all(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    from headrace.data.formats.codes import are_codes

    if column.null_count == len(column) or are_codes(column):
        return column
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return column


def _read(column: pa.ChunkedArray, rule: ValueRule, name: str, path: Path, first_row: int) -> pa.ChunkedArray:
    """Returns the column in the type of its rule. Each distinct value is read once."""
    import pyarrow as pa

    kind = {"number": pa.float64(), "boolean": pa.bool_(), "text": pa.string(), "time": pa.timestamp("us")}[rule.type]
    if pa.types.is_null(column.type):
        return column.cast(kind)
    if _has_type(column.type, rule):
        return _without_zone(column) if rule.type == "time" else column.cast(kind)
    if rule.type == "time" and not pa.types.is_string(column.type):
        raise DataError(
            f"column {name!r} holds {column.type}, and data.times expects times or texts",
            where=str(path),
            hint=f"remove {name!r} from data.times, or write its times as texts",
        )
    if pa.types.is_dictionary(column.type):
        return _read(column.cast(column.type.value_type), rule, name, path, first_row)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise DataError(
            f"column {name!r} holds {column.type}, and data.parse expects texts or numbers",
            where=str(path),
            hint=f"remove {name!r} from data.parse, or write it as several columns",
        )
    chunk = column.combine_chunks().dictionary_encode()
    found: list[Any] = []
    wrong: set[int] = set()
    for i, value in enumerate(chunk.dictionary.to_pylist()):
        try:
            found.append(_value(value, rule))
        except (ValueError, OverflowError):
            found.append(None)
            wrong.add(i)
    if wrong:
        raise _refused(chunk, wrong, rule, name, path, first_row)
    return pa.chunked_array([pa.array(found, kind).take(chunk.indices)])


def _has_type(kind: pa.DataType, rule: ValueRule) -> bool:
    from pyarrow import types

    if rule.type == "number":
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))
    if rule.type == "boolean":
        return bool(types.is_boolean(kind))
    if rule.type == "time":
        return bool(types.is_timestamp(kind) or types.is_date(kind))
    return bool(types.is_string(kind))


def _without_zone(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns times in UTC, as the service reads them."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit))
    return column.cast(pa.timestamp("us"), safe=False)


def _value(value: Any, rule: ValueRule) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return None
    if rule.type == "text":
        return category_text(value)
    if isinstance(value, str) and not value.strip():
        return None  # a gap that is written as "", as in requests
    found = rule.read(value)
    return EPOCH.replace(tzinfo=None) + timedelta(seconds=found) if rule.type == "time" else found


def _refused(chunk: Any, wrong: set[int], rule: ValueRule, name: str, path: Path, first_row: int) -> DataError:
    import numpy as np

    indices = chunk.indices.to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(np.isin(indices, list(wrong)))
    values = chunk.dictionary.to_pylist()
    shown = ", ".join(f"data row {first_row + row:,}: {values[int(indices[row])]!r}"[:80] for row in rows[:MAX_PLACES])
    field = "data.times" if rule.type == "time" else "data.parse"
    return DataError(
        f"{len(rows):,} values of column {name!r} are not {rule.expected}: {shown}",
        where=str(path),
        hint=f"correct the rule in {field}.{name}, add what means a missing value to data.missing, or correct the file",
    )
