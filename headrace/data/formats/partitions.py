"""Columns in the paths of files, as Hive and Spark write them: `sales/year=2024/month=1/part.parquet`."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    import pyarrow as pa

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def with_partitions(table: pa.Table, path: Path, only: Collection[str] | None = None) -> pa.Table:
    """Returns the table with a column for each `name=value` in the folders of its path that it does not have already.

    Args:
        only: the columns that are asked for; None: all.
    """
    import pyarrow as pa

    for folder in path.parent.parts:
        name, equals, text = folder.partition("=")
        if not equals or not name or name in table.column_names or (only is not None and name not in only):
            continue
        value = None if text == NO_VALUE else unquote(text)
        is_number = value is None or re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) is not None
        one = pa.scalar(value if value is None or not is_number else int(value), pa.int64() if is_number else pa.string())
        table = table.append_column(name, pa.repeat(one, table.num_rows))
    return table
