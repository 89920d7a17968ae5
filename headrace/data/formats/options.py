"""Options for reading a file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from headrace.data.formats.column_rules import ColumnRules
from headrace.recipe.read import ReadConfig


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
    label_lists: Collection[str] = ()
    """Columns that may hold lists of labels, by their names in the file."""
    skip_rows: int = 0
    """Rows to skip below the header."""
    numbers: Collection[str] = ()
    """Columns of digits that stay numbers, whatever their leading zeros."""
    rules: ColumnRules = field(default_factory=ColumnRules)
    """How values are read by the recipe."""
    read: ReadConfig | None = None
    """The recipe's section `data.read`; None: a text file is read with commas or tabs, as its format says."""
    only: Collection[str] | None = None
    """Columns that are needed; others are not looked at. None: all."""
    codes: Collection[str] = ()
    """Columns to read as text if one of their numbers has a leading zero."""

    @property
    def text_encoding(self) -> str:
        return (self.read.encoding if self.read else None) or self.encoding
