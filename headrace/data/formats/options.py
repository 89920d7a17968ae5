"""How a file is read, where its name and its first line do not say it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """The recipe's word on a file's form; without one, the file's name and first line say it."""

    format: str | None = None
    """A key of `headrace.data.formats.files.ENDINGS`; None: the name's ending says it."""
    header: bool = True
    """Whether the first line of a CSV names its columns; else `names` does, in order."""
    names: list[str] | None = None
    text: Collection[str] = ()
    """Columns to read as text although they may look like numbers (codes with leading zeros)."""
    encoding: str = "utf-8"
    skip_rows: int = 0
    """Rows below the names that are no data."""


def first_line(error: BaseException) -> str:
    """What a library says, short enough to show."""
    return str(error).split("\n")[0][:200]
