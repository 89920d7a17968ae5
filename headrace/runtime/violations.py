"""Values that break a contract: the error that names them, and how a value is shown in it."""

from __future__ import annotations

import reprlib
from typing import Any

SHORT_REPR = reprlib.Repr()
SHORT_REPR.maxlevel = 4
SHORT_REPR.maxlist = SHORT_REPR.maxdict = 20
SHORT_REPR.maxstring = SHORT_REPR.maxother = SHORT_REPR.maxlong = 100
"""Shows the beginning of a value."""


class ContractViolation(ValueError):
    """An instance that breaks the contract; `path` names the field, for example `instances.3.distance`."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"{path}: expected {expected}, got {got}")
        self.path = path
        self.expected = expected
        self.got = got


def describe(value: Any) -> str:
    """Returns the type of a client's value and its beginning, in at most 40 characters."""
    if value is None:
        return "null"
    shown = SHORT_REPR.repr(value)  # reads no more of the value than it shows
    return f"{type(value).__name__} {shown if len(shown) < 40 else shown[:37] + '...'}"


def shown_number(number: Any) -> str:
    """Formats a number as 1000000, which `g` would format as 1e+06."""
    plain = float(number)
    return f"{plain:.0f}" if plain.is_integer() and abs(plain) < 1e15 else f"{plain:g}"
