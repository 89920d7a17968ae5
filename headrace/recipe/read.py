"""The recipe's section `data.read`: how files and databases are read as tables."""

from __future__ import annotations

import codecs
from encodings.aliases import aliases
from typing import Literal

from pydantic import Field, field_validator, model_validator

from headrace.errors import near_miss
from headrace.recipe.section import Section

Decimal = Literal[".", ","]
Thousands = Literal[",", ".", " ", "'", "_"]
NAMED_CHARACTERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}


class ReadConfig(Section):
    """How files are read as tables: the dialect of text files, sheets and queries. `headrace new` writes what it recognised.
    Later batches are read in the same way. How the values of columns are read is said beside it: `missing`, `trim`, `parse`
    and `times`."""

    separator: str | None = None
    """The character between two values, for example `";"` or `"\\t"`; by default the one of the file's format."""
    quote: str = '"'
    """The character around values that contain a separator; empty: none."""
    escape: str | None = None
    """The character before a quote within a value; by default the quote is doubled."""
    decimal: Decimal = "."
    """The decimal sign of numbers."""
    thousands: Thousands | None = None
    """The sign between groups of three digits."""
    encoding: str | None = None
    """Encoding of text files; by default `data.encoding`."""
    skip_lines: int = Field(default=0, ge=0)
    """Number of lines above the header, or above the first row without a header, to skip."""
    skip_last: int = Field(default=0, ge=0)
    """Number of lines below the last row to skip."""
    names: list[str] | None = None
    """Names of all columns of a file without header (`data.header: false`), in order; by default `data.columns`."""
    comment: str | None = None
    """Lines that begin with this character are skipped."""
    sheet: str | None = None
    """Name of the sheet of a workbook; by default the first one."""
    query: str | None = None
    """A query in SQL, for a database in `data.source`."""
    table: str | None = None
    """Name of a table, for a database in `data.source` without a query."""

    @field_validator("separator", "quote", "escape", "comment", mode="before")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if not isinstance(value, str) or not value:
            return value
        value = NAMED_CHARACTERS.get(value.lower(), value)
        if len(value) != 1 or ord(value) > 127 or value in "\r\n":
            raise ValueError(f"expected one ASCII character, for example ';'; got {value!r}")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            check_encoding(encoding)
        return encoding

    @model_validator(mode="after")
    def _check_signs(self) -> ReadConfig:
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}; set one of them to another sign")
        if self.separator is not None and self.separator in (self.quote, self.escape, self.comment):
            raise ValueError(f"separator {self.separator!r} is also the quote, escape or comment character")
        if self.query is not None and self.table is not None:
            raise ValueError("query and table both say what to read; remove one of them")
        return self


def check_encoding(encoding: str) -> None:
    """
    Raises:
        ValueError: Python knows no such encoding of text; the message has a close match.
    """
    try:
        codecs.lookup(encoding)
        "".encode(encoding)  # some codecs convert bytes, not text
    except LookupError:
        raise ValueError(f"unknown encoding; {near_miss(encoding.lower(), sorted(set(aliases.values())))}") from None
