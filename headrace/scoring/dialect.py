"""How a CSV file is written: separator, quotes, decimal sign and header, found by the names of the model's fields."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.runtime.contract import Contract
from headrace.scoring.columns import columns_of_fields
from headrace.scoring.rows import BadFile

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", ":": "colons", "^": "carets", "~": "tildes"}
HEADER_LINES = 20
"""The header is in one of the first lines: a title may be above it."""
SAMPLE_ROWS = 1000
"""Rows whose numbers tell the decimal sign."""
COMMA = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:\.[0-9]{3})+|[0-9]*),(?:[0-9]{1,2}|[0-9]{4,})|0?,[0-9]+)")
"""A number with a decimal comma, which cannot be one with thousands."""
THOUSANDS_ONLY = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+")
POINT = re.compile(r"[+-]?(?:[0-9,]*\.(?:[0-9]{1,2}|[0-9]{4,})|0?\.[0-9]+)")


class _Last:
    """A file that has what was last written to it."""

    value = ""

    def write(self, text: str) -> None:
        self.value = text


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written."""

    separator: str = ","
    quote: str = '"'
    skips_blank: bool = False
    """Whether a blank after a separator is left out."""
    header: int = 0
    """Lines above the header."""
    decimal: str = "."
    newline: str = "\n"

    def reader(self, lines: Iterable[str]) -> Any:
        """Returns a reader of rows of cells."""
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote, skipinitialspace=self.skips_blank)

    def joined(self, cells: Sequence[str]) -> str:
        """Returns cells as the text of a row, without the end of the line."""
        text = _Last()
        csv.writer(text, delimiter=self.separator, quotechar=self.quote, lineterminator="").writerow(cells)
        return text.value

    def describe(self) -> str:
        """Returns the dialect in words."""
        parts = [f"separated by {SEPARATORS[self.separator]}"]
        parts += ["decimal commas"] if self.decimal == "," else []
        parts += [f"quotes {self.quote}"] if self.quote != '"' else []
        parts += [f"header in line {self.header + 1}"] if self.header else []
        return ", ".join(parts)


def dialect_of(sample: list[str], contract: Contract) -> Dialect:
    """Finds the dialect of a file.

    Args:
        sample: its first lines, with their ends.

    Raises:
        BadFile: no line has names of the model's fields.
    """
    names = {field.name for field in contract.inputs} | contract.fields_of_columns.keys()
    found, most = None, 0
    for quote in ('"', "'"):
        for separator in SEPARATORS:
            dialect = Dialect(separator, quote)
            for place, line in enumerate(sample[:HEADER_LINES]):
                cells = _cells(dialect, line)
                hits = len({cell.strip("\ufeff \t") for cell in cells} & names)
                if hits > most:
                    found, most = replace(dialect, header=place, skips_blank=_starts_blank(cells)), hits
    if found is None:
        raise BadFile("wrong_columns", _no_header(sample, contract))
    newline = "\r\n" if sample[found.header].endswith("\r\n") else "\r" if sample[found.header].endswith("\r") else "\n"
    found = replace(found, newline=newline)
    return replace(found, decimal=_decimal(found, sample, contract))


def _cells(dialect: Dialect, line: str) -> list[str]:
    try:
        return next(dialect.reader([line]), [])
    except csv.Error:
        return []


def _starts_blank(cells: list[str]) -> bool:
    return len(cells) > 1 and all(cell.startswith(" ") for cell in cells[1:])


def _decimal(dialect: Dialect, sample: list[str], contract: Contract) -> str:
    """Returns the decimal sign of the numbers in the first rows. Where they do not tell, it is a comma if commas separate no
    cells, and a semicolon does."""
    rows = dialect.reader(iter(sample[dialect.header :]))
    try:
        columns = columns_of_fields(next(rows), contract, "keep")
        numbers = [f.name for f in contract.inputs if f.dtype != "string" and not f.shape and f.rule is None]
        places = [columns[name] for name in numbers if name in columns]
        cells = [row[place].strip() for row in rows for place in places if place < len(row)]
    except (BadFile, csv.Error):  # reported when the rows are read
        return "."
    if any(POINT.fullmatch(cell) for cell in cells):
        return "."
    if any(COMMA.fullmatch(cell) for cell in cells):
        return ","
    return "," if dialect.separator == ";" and any(THOUSANDS_ONLY.fullmatch(cell) for cell in cells) else "."


def _no_header(sample: list[str], contract: Contract) -> str:
    names = [field.name for field in contract.inputs]
    first = next((line.strip("\ufeff\r\n") for line in sample if line.strip()), "")
    return (
        f"no line at the beginning of the file has the names of the model's fields ({', '.join(names)[:300]}); "
        f"the first line is {first[:100]!r}; add a header with these names"
    )
