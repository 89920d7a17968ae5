"""Options for reading a file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read. By default the format comes from the file's name and the columns from its first line."""

    format: str | None = None
    """A key of `headrace.data.formats.files.ENDINGS`; None: chosen by the file's extension."""
    header: bool = True
    """Whether the first line of a CSV names its columns; otherwise `names` does."""
    names: list[str] | None = None
    text: Collection[str] = ()
    """Columns to read as text, although they may look like numbers (codes with leading zeros)."""
    encoding: str = "utf-8"
    skip_rows: int = 0
    """Rows to skip below the header."""
