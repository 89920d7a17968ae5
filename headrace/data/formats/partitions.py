"""Columns in the paths of files, as Hive and Spark write them: `sales/year=2024/month=1/part.parquet`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    import pyarrow as pa

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
DIGITS = re.compile(r"-?[0-9]{1,18}")


def with_partitions(
    table: pa.Table,
    path: Path,
    only: Collection[str] | None = None,
    text: Collection[str] = (),
    numbers: Collection[str] = (),
) -> pa.Table:
    """Returns the table with a column for each `name=value` in the folders of its path that it does not have already.

    Args:
        only: the columns that are asked for; None: all.
        text: columns of text, although this value may look like a number.
        numbers: columns of digits that are numbers, whatever their leading zeros.
    """
    import pyarrow as pa

    for name, value in _partitions(path):
        if name in table.column_names or (only is not None and name not in only):
            continue
        is_number = name not in text and (value is None or _is_number(value, name in numbers))
        one = pa.scalar(value if value is None or not is_number else int(value), pa.int64() if is_number else pa.string())
        table = table.append_column(name, pa.repeat(one, table.num_rows))
    return table


def text_partitions(paths: Iterable[Path]) -> set[str]:
    """Returns the columns in these paths that hold text: those of which one value is not a number. A code such as `02134` is
    text, and so is then the `10001` beside it."""
    return {name for path in paths for name, value in _partitions(path) if value is not None and not _is_number(value, False)}


def partition_values(path: Path, text: Collection[str]) -> dict[str, str | int | None]:
    """Returns the values in the folders of a path, by the names of their columns; those in `text` stay texts."""
    return {
        name: value if value is None or name in text or not _is_number(value, False) else int(value)
        for name, value in _partitions(path)
    }


def _partitions(path: Path) -> Iterator[tuple[str, str | None]]:
    for folder in path.parent.parts:
        name, equals, text = folder.partition("=")
        if equals and name:
            yield name, None if text == NO_VALUE else unquote(text)


def _is_number(value: str, may_begin_with_zero: bool) -> bool:
    return (DIGITS if may_begin_with_zero else NUMBER).fullmatch(value) is not None
