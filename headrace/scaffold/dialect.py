"""Recognises how a text table is written: separator, quotes, header, comments, lines above and below the table, and the signs
of its numbers."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.data.formats.opening import Utf8Stream, open_unpacked
from headrace.data.formats.options import ReadOptions
from headrace.data.formats.text_values import NumberFormat, null_values, number_pattern
from headrace.errors import DataError
from headrace.recipe.read import ReadConfig
from headrace.scaffold.encodings import recognised_encoding

SAMPLE_CHARACTERS = 1 << 20
SAMPLE_ROWS = 20_000
SEPARATORS = (",", ";", "\t", "|", ":", "~", "^")
FOOTER_LINES = 20
"""Most lines below a table that are recognised."""
THOUSANDS = {".": ",", ",": "."}


@dataclass(frozen=True)
class Dialect:
    """How a text table is written."""

    read: ReadConfig
    header: bool
    trim: bool
    """Whether values have blanks around them."""

    @property
    def lines(self) -> list[str]:
        """What was recognised, in words."""
        read = self.read
        names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes", " ": "spaces"}
        found = [f"separated by {names.get(read.separator or ',', repr(read.separator))}", f"encoding {read.encoding}"]
        found += [f"decimal sign {read.decimal!r}"] if read.decimal != "." else []
        found += [f"thousands {read.thousands!r}"] if read.thousands else []
        found += [f"quotes {read.quote or 'none'}"] if read.quote != '"' else []
        found += [f"{read.skip_lines} lines above the table"] if read.skip_lines else []
        found += [f"{read.skip_last} lines below the table"] if read.skip_last else []
        found += [f"comments after {read.comment!r}"] if read.comment else []
        found += ["blanks around texts removed"] if self.trim else []
        return [*found, *([] if self.header else ["no header"])]


def recognise(path: Path, given: dict[str, Any], header: bool | None) -> Dialect:
    """Returns the dialect of a text table.

    Args:
        given: fields of `data.read` that the user has set; these are not guessed.
        header: whether the first line holds names; None: to be recognised.

    Raises:
        DataError: the text cannot be decoded.
    """
    encoding = given.get("encoding") or recognised_encoding(path)
    text, is_whole = _sample(path, encoding)
    found = _sniffed(text, given)
    has_header = found.pop("has_header", True)
    read = ReadConfig(**{**found, **given, "encoding": encoding})
    if is_whole and "skip_last" not in given and not read.skip_last:
        read = read.model_copy(update={"skip_last": _lines_below(text, read)})
    rows = _rows(text, read)
    known = header if header is not None else _has_header(rows, has_header)
    body = rows[known:]
    if "decimal" not in given:
        read = read.model_copy(update=_signs(body, read, given))
    return Dialect(read, known, _has_blanks(rows))


def _sample(path: Path, encoding: str) -> tuple[str, bool]:
    """Returns the text at the begin of a file, up to the end of a line, and whether that is the whole file."""
    options = ReadOptions(encoding=encoding)
    with Utf8Stream(open_unpacked(path), path, options) as stream:
        reader = io.BufferedReader(stream)
        try:
            raw = reader.read(SAMPLE_CHARACTERS)
            is_whole = not reader.read(1)
        except DataError:
            raise stream.error or DataError("not a text file", where=str(path)) from None
    text = raw.decode("utf-8", "ignore").replace("\r\n", "\n").replace("\r", "\n")
    if not is_whole and "\n" in text:
        text = text[: text.rindex("\n") + 1]
    return text, is_whole


def _sniffed(text: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns what DuckDB's sniffer says; where it sees one column only, what it says of each separator."""
    if not text.strip():
        raise DataError("the file has no text", hint="use a file with a table")
    fixed = {name: given[name] for name in ("separator", "quote", "escape", "comment") if given.get(name) is not None}
    if given.get("skip_lines"):
        text = "".join(text.splitlines(keepends=True)[given["skip_lines"] :])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "sample.csv"
        copy.write_text(text, encoding="utf-8")
        best = _sniff(copy, fixed)
        if (best is None or best["columns"] < 2) and "separator" not in fixed:
            others = [_sniff(copy, {**fixed, "separator": one}, ignore_errors=True) for one in SEPARATORS]
            best = max([b for b in [best, *others] if b is not None], key=lambda b: b["columns"], default=None)
        if best is not None and best["comment"] and "comment" not in fixed and _are_rows(text, best):
            best = _sniff(copy, {**fixed, "comment": ""}) or {**best, "comment": None}
    if best is None:
        return {"separator": ",", **fixed}
    best.pop("columns")
    return best


def _are_rows(text: str, found: dict[str, Any]) -> bool:
    """Returns whether lines that begin with the sign of comments are rows of the table, as in a column of `#N/A` or `#12`."""
    lines = [line for line in text.split("\n")[:SAMPLE_ROWS] if line.startswith(found["comment"])]
    widths = [len(row) for row in csv.reader(lines, delimiter=found["separator"])]
    return bool(found["columns"] > 1 and sum(width == found["columns"] for width in widths) > len(widths) // 2)


def _sniff(path: Path, fixed: dict[str, Any], ignore_errors: bool = False) -> dict[str, Any] | None:
    import duckdb

    names = {"separator": "delim", "quote": "quote", "escape": "escape", "comment": "comment"}
    options = "".join(f", {names[name]}={_literal(value)}" for name, value in fixed.items())
    options += ", ignore_errors=true" if ignore_errors else ""
    query = f"SELECT Delimiter, Quote, Escape, Comment, SkipRows, HasHeader, len(Columns) FROM sniff_csv({_literal(str(path))}, sample_size={SAMPLE_ROWS}{options})"  # noqa: S608 E501
    try:
        with duckdb.connect() as connection:
            row = connection.execute(query).fetchone()
    except duckdb.Error:
        return None
    if row is None:
        return None
    separator, quote, escape, comment, skip, has_header, columns = row
    quote, escape, comment = (None if value == "(empty)" else value for value in (quote, escape, comment))
    return {
        "separator": separator or ",",
        "quote": quote or '"',
        "escape": escape if escape != (quote or '"') else None,
        "comment": comment or None,
        "skip_lines": 0 if comment else int(skip or 0),
        "has_header": bool(has_header),
        "columns": int(columns),
    }


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _rows(text: str, read: ReadConfig) -> list[list[str]]:
    """Returns the rows of the sample as texts."""
    lines = [f"{line}\n" for line in text.removesuffix("\n").split("\n")][read.skip_lines :]
    lines = lines[: len(lines) - read.skip_last] if read.skip_last else lines
    lines = [line for line in lines if not (read.comment and line.startswith(read.comment))]
    reader = csv.reader(
        lines,
        delimiter=read.separator or ",",
        quotechar=read.quote or None,
        escapechar=read.escape,
        doublequote=read.escape is None,
        quoting=csv.QUOTE_MINIMAL if read.quote else csv.QUOTE_NONE,
    )
    found: list[list[str]] = []
    limit = csv.field_size_limit(SAMPLE_CHARACTERS)
    try:
        for row in reader:
            if row:
                found.append(row)
            if len(found) > SAMPLE_ROWS:
                break
    except csv.Error:
        pass  # the reader of the data says what is wrong, with its row
    finally:
        csv.field_size_limit(limit)
    return found


def _lines_below(text: str, read: ReadConfig) -> int:
    """Returns the number of lines below the table: the last ones, with other numbers of columns than all rows above."""
    rows = _rows(text, read)
    if len(rows) < 3 or len(rows[0]) < 2:
        return 0
    width = Counter(len(row) for row in rows).most_common(1)[0][0]
    below = 0
    for row in reversed(rows):
        if len(row) == width or below == FOOTER_LINES:
            break
        below += 1
    if not below or below == FOOTER_LINES or any(len(row) != width for row in rows[: len(rows) - below]):
        return 0  # rows of other lengths within the table are faults, not lines below it
    if below == 1 and len(rows[-1]) == width - 1 and not text.endswith("\n"):
        return 0  # rather a truncated last row
    # Blank lines between them count too, as lines are skipped and not rows.
    lines, rest = text.removesuffix("\n").split("\n"), 0
    for line in reversed(lines):
        rest += 1
        if line.strip():
            below -= 1
        if not below:
            break
    return rest


def _has_header(rows: list[list[str]], sniffed: bool) -> bool:
    """Returns whether the first row holds names. A number among them, or a value that its column repeats, is not a name."""
    if not rows:
        return sniffed
    first, body = [cell.strip() for cell in rows[0]], rows[1:1000]
    if any(_is_number(cell) and "." in cell for cell in first):
        return False
    columns = [[row[i].strip() for row in body if i < len(row)] for i in range(len(first))]
    numbers = [bool(c) and all(_is_number(cell) for cell in c if cell) and any(c) for c in columns]
    above_numbers = [cell for is_number, cell in zip(numbers, first, strict=True) if is_number and cell]
    if any(not _is_number(cell) and cell not in null_values() for cell in above_numbers):
        return True
    if any(map(_is_number, above_numbers)):
        return False
    repeated = [cell in column for cell, column in zip(first, columns, strict=True) if cell]
    return not any(repeated) if body and any(repeated) else sniffed or not any(repeated)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _has_blanks(rows: list[list[str]]) -> bool:
    """Returns whether values have blanks around them, as in `39, State-gov, 77516`."""
    cells = [cell for row in rows[:1000] for cell in row[1:] if cell.strip()]
    return bool(cells) and sum(cell != cell.strip() for cell in cells) > len(cells) // 2


def _signs(body: list[list[str]], read: ReadConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the decimal sign and thousands that most columns of numbers have."""
    votes: Counter[tuple[str, str | None]] = Counter()
    width = max((len(row) for row in body), default=0)
    for i in range(width):
        cells = [row[i].strip() for row in body if i < len(row) and row[i].strip() and row[i].strip() not in null_values()]
        if (found := number_format(cells, is_money=read.separator == ",")) is not None:
            votes[found.decimal, found.thousands] += 1
    plain = votes.pop((".", None), 0)
    points = sum(any("." in cell for cell in cells) for cells in _plain_columns(body, width))
    if not votes or (read.separator == "," and plain):
        return {}  # a few quoted columns with other signs have rules of their own (data.parse)
    (decimal, _), count = votes.most_common(1)[0]
    if decimal == "." and count < plain:
        return {}
    if decimal == "," and points > count:
        return {}
    thousands = next((t for (d, t), _ in votes.most_common() if d == decimal and t is not None), None)
    return {"decimal": decimal, "thousands": given.get("thousands", thousands)}


def _plain_columns(body: list[list[str]], width: int) -> list[list[str]]:
    columns = [[row[i].strip() for row in body if i < len(row) and row[i].strip()] for i in range(width)]
    return [cells for cells in columns if number_format(cells) == NumberFormat()]


def number_format(cells: list[str], is_money: bool = False) -> NumberFormat | None:
    """Returns how the numbers of a column are written, or None if a cell is not a number in one format. `1,234` alone says
    nothing about its sign: a column with three digits after each comma is taken for decimals, and amounts of money for
    thousands."""
    import re

    if not cells:
        return None
    decimals = (NumberFormat(), NumberFormat(decimal=","))
    for rule in (*_grouped(), *decimals) if is_money and _are_grouped(cells) else (*decimals, *_grouped()):
        pattern = re.compile(number_pattern(rule).replace(r"\x{a0}", "\xa0").replace(r"\x{202f}", "\u202f"))
        if all(pattern.match(cell) for cell in cells):
            if rule.decimal == "," and rule.thousands is None and not any("," in cell for cell in cells):
                continue
            return rule
    return None


def _are_grouped(cells: list[str]) -> bool:
    """Returns whether every sign of a column may stand between groups of three digits."""
    import re

    return any(re.search("[.,]", cell) for cell in cells) and all(
        re.fullmatch(r"[1-9]\d{0,2}(,\d{3})*|[1-9]\d{0,2}(\.\d{3})*|\d+", cell) for cell in cells
    )


def _grouped() -> list[NumberFormat]:
    """Returns the formats with groups of three digits, in the order in which they are tried."""
    pairs = ((".", ","), (",", "."), (",", " "), (".", " "), (".", "'"), (",", "'"))
    return [NumberFormat(decimal=decimal, thousands=thousands) for decimal, thousands in pairs]
