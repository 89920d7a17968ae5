"""Keeps codes of digits in CSV as text: those with leading zeros, and whole numbers that no 64-bit integer holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

CODE = r"^\s*[+-]?0[0-9]+\s*$"
WHOLE = r"^\s*[+-]?[0-9]+\s*$"
LEADING_ZERO = re.compile(rb"(?<![0-9.])0[0-9]")
LONG = re.compile(rb"(?<![0-9.])[0-9]{19}")


def are_codes(column: pa.ChunkedArray) -> bool:
    """Returns whether some text of the column is a whole number with a leading zero."""
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(column, CODE)).as_py())


def keep_codes(table: pa.Table, raw: bytes, numbers: Collection[str], again: Any) -> pa.Table:
    """Replaces columns of numbers by their texts if those are codes: a number would lose zeros or digits.

    Args:
        raw: the file. It is searched first, as most files have no codes.
        numbers: columns that stay numbers, as earlier batches have them.
        again: reads the named columns of the file as texts, as a table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    types, counts = pa.types, Counter(table.column_names)
    has_zeros = any(map(types.is_integer, table.schema.types)) and LEADING_ZERO.search(raw) is not None
    has_long = any(map(types.is_floating, table.schema.types)) and LONG.search(raw) is not None
    suspects = [
        name
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if name not in numbers and counts[name] == 1
        if (has_zeros and types.is_integer(kind)) or (has_long and types.is_floating(kind))
    ]
    if not suspects:
        return table
    texts = again(suspects)
    for name in suspects:
        column = texts[name]
        is_integer = types.is_integer(table.schema.field(name).type)
        is_whole = pc.all(pc.match_substring_regex(column.drop_null(), WHOLE)).as_py()
        if are_codes(column) if is_integer else (is_whole and column.null_count < len(column)):
            table = table.set_column(table.column_names.index(name), name, pc.utf8_trim_whitespace(column))
    return table
