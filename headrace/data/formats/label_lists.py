"""Columns with lists of labels, which are stored as JSON text so that every format and later step can hold them."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def label_lists_as_text(table: pa.Table, names: Collection[str]) -> pa.Table:
    """Converts those of the columns `names` that hold lists of texts or whole numbers to JSON text, for example
    `["late", "paid"]`; a missing list stays missing. Other columns are unchanged."""
    import pyarrow as pa

    for name in names:
        if name in table.column_names and _is_label_list(table.schema.field(name).type):
            texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return table


def _is_label_list(kind: pa.DataType) -> bool:
    from pyarrow import types

    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    value = kind.value_type
    if types.is_dictionary(value):
        value = value.value_type
    is_text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    return bool(is_text or types.is_integer(value) or types.is_null(value))  # null: all lists are empty
