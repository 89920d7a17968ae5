"""Durations in a recipe, for example `15m`, `1h` or `7d`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

UNITS = {"m": 60.0, "h": 3600.0, "d": 24 * 3600.0}
SHORTEST_SECONDS = 60.0


def duration_seconds(duration: str) -> float:
    """
    Raises:
        ValueError: it is not a duration of at least a minute.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", duration)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if seconds < SHORTEST_SECONDS:
        raise ValueError(f"expected a duration of at least a minute, for example 15m, 1h or 7d; got {duration!r}")
    return seconds


def _checked(duration: str) -> str:
    duration_seconds(duration)
    return duration


Duration = Annotated[str, AfterValidator(_checked)]
"""The type of a recipe field with a duration."""
