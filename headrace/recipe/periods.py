"""Lengths of time in a recipe, such as `3 months`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Unit = Literal["hours", "days", "weeks", "months", "years"]
UNITS: tuple[str, ...] = get_args(Unit)
EXPECTED = "a length of time such as 90 days, 3 months or 1 year"


@dataclass(frozen=True)
class Period:
    """A length of time by the calendar: a month back from 31 March is the end of February."""

    count: int
    unit: Unit

    def __str__(self) -> str:
        return f"{self.count} {self.unit if self.count > 1 else self.unit[:-1]}"


def parse_period(text: Any) -> Period | None:
    """Reads `3 months` or `1 month`; None for anything else, also for a count of 0."""
    found = re.fullmatch(r"\s*([1-9][0-9]{0,5})\s*([A-Za-z]+)\s*", text) if isinstance(text, str) else None
    if found is None:
        return None
    unit = found[2].lower()
    unit = unit if unit.endswith("s") else f"{unit}s"
    return Period(int(found[1]), cast("Unit", unit)) if unit in UNITS else None
