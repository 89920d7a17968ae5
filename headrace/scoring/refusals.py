"""Refused rows, summed up: one entry for all rows that are refused for the same reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.scoring.rows import Line

MOST_ROWS = 10
"""Rows that are listed for a reason; the others are counted."""
MOST_REASONS = 100
"""Reasons that are counted each on their own."""
INSTANCE = re.compile(r"instances\.\d+\b")
Refusal = dict[str, Any]
"""`{"code", "field", "expected", "count", "rows": [{"row", "place", "got"}]}`; without a field, `expected` is the message."""


class Refusals:
    """Counts refused rows by reason."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], Refusal] = {}
        self.count = 0

    def add(self, line: Line, place: str | None = None) -> None:
        """Counts the line of a row, if it is an error; `place` is where the row is in the file."""
        if not (error := line.get("error")):
            return
        self.count += 1
        path = str(error.get("path") or "").removeprefix("row").removeprefix(".")
        expected = str(error.get("expected") or str(error["message"]).removeprefix("row."))[:300]
        key = (str(error["code"]), path, expected)
        if key not in self._found and len(self._found) >= MOST_REASONS:
            key = ("other", "", "further reasons")
        one = self._found.setdefault(key, {"code": key[0], "field": key[1] or None, "expected": key[2], "count": 0, "rows": []})
        one["count"] += 1
        if len(one["rows"]) < MOST_ROWS:
            got = str(error["got"])[:100] if error.get("got") is not None else None
            one["rows"].append({"row": line["row"], "place": place, "got": got})

    def merge(self, others: Iterable[Refusal]) -> None:
        """Adds what was counted of later rows."""
        for other in others:
            self.count += other["count"]
            key = (other["code"], other["field"] or "", other["expected"])
            if key not in self._found and len(self._found) >= MOST_REASONS:
                key = ("other", "", "further reasons")
            empty = {"code": key[0], "field": key[1] or None, "expected": key[2], "count": 0, "rows": []}
            one = self._found.setdefault(key, empty)
            one["count"] += other["count"]
            one["rows"] += other["rows"][: MOST_ROWS - len(one["rows"])]

    def to_list(self) -> list[Refusal]:
        """Returns the reasons, the most frequent first."""
        return sorted(self._found.values(), key=lambda one: -one["count"])


def error_line(row: int, code: str, message: str, details: Mapping[str, Any]) -> Line:
    """Returns the line of a row that a model refused; its number in the request is left out.

    Args:
        row: the number in the file.
        details: further fields of the error, for example `path`, `expected` and `got`.
    """
    error = {"code": code, "message": INSTANCE.sub("row", message), **details}
    if "path" in error:
        error["path"] = INSTANCE.sub("row", str(error["path"]))
    return {"row": row, "error": error}


def describe(refusal: Refusal) -> str:
    """Returns a reason with its first rows, as one line."""
    places = ", ".join(_place(row) for row in refusal["rows"])
    more = refusal["count"] - len(refusal["rows"])
    rest = f" and {more:,} more" if more > 0 else ""
    what = f"{refusal['field']}: expected {refusal['expected']}" if refusal["field"] else refusal["expected"]
    return f"{refusal['count']:,} × {what}: {places}{rest}"


def _place(row: dict[str, Any]) -> str:
    where = row.get("place") or f"row {row['row']}"
    return f"{where} ({row['got']})" if row.get("got") else str(where)
