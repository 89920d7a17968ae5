"""Values of a request that no training row had: categories that are not known, and numbers outside of the range of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_WARNINGS = 100
"""Values that are named in one answer; all are counted."""
MAX_SHOWN = 60
"""Characters that are shown of a value."""


class KnownField(Protocol):
    """What a field of a contract (`headrace.runtime.input_field.InputField`) knows of the training rows."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def levels(self) -> list[str] | None: ...
    @property
    def known_levels(self) -> frozenset[str]: ...
    @property
    def lowest(self) -> float | None: ...
    @property
    def highest(self) -> float | None: ...

    def shown(self, number: Any) -> str:
        """Returns a number as people write it."""
        ...


@dataclass(frozen=True)
class UnseenValue:
    """One value that no training row had."""

    row: int
    field: str
    expected: str
    got: str


@dataclass
class UnseenValues:
    """The first of these values, and the number of all of them."""

    values: list[UnseenValue] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """By name of the field and kind: `unknown_level`, `out_of_range`."""
    most: int | None = MAX_WARNINGS
    """Values that are named; None: all."""

    def first_of(self, rows: list[int]) -> list[int]:
        """Returns those of further `rows` that are still to be named."""
        return rows if self.most is None else rows[: self.most - len(self.values)]

    def messages(self, start: str) -> list[dict[str, str]]:
        """Returns `{"path", "message"}` of each value; `start` is the beginning of paths."""
        return [
            {"path": f"{start}.{one.row}.{one.field}", "message": f"{one.got} is outside of the training data: {one.expected}"}
            for one in self.values
        ]


def unseen_values(
    inputs: Sequence[KnownField], feeds: dict[str, NDArray[Any]], most: int | None = MAX_WARNINGS
) -> UnseenValues:
    """Returns the values of `feeds` that no training row had, for the fields that know what training had.

    Args:
        most: values that are named; all are counted. None: all are named.
    """
    found = UnseenValues(most=most)
    for one in inputs:
        if one.levels and one.dtype == "string":
            _add_unknown_levels(one, feeds[one.name], found)
        elif one.lowest is not None or one.highest is not None:
            _add_out_of_range(one, feeds[one.name], found)
    return found


def _add_unknown_levels(one: KnownField, values: NDArray[Any], found: UnseenValues) -> None:
    texts = values.tolist()
    unknown = set(texts) - one.known_levels
    if not unknown:
        return
    rows = [row for row, text in enumerate(texts) if text in unknown]
    found.counts[one.name, "unknown_level"] = len(rows)
    levels = one.levels or []
    known = ", ".join(map(repr, levels[:10])) + (f" and {len(levels) - 10} more" if len(levels) > 10 else "")
    for row in found.first_of(rows):
        found.values.append(UnseenValue(row, one.name, f"known are {known}", repr(texts[row])[:MAX_SHOWN]))


def _add_out_of_range(one: KnownField, numbers: NDArray[Any], found: UnseenValues) -> None:
    # bounds in the field's own type: a value of training is rounded as they are
    low, high = (None if bound is None else numbers.dtype.type(bound) for bound in (one.lowest, one.highest))
    outside = np.zeros(len(numbers), dtype=bool)
    for bound, compare in ((low, np.less), (high, np.greater)):
        if bound is not None:
            outside |= compare(numbers, bound)  # false for a missing number
    if not outside.any():
        return
    rows = np.flatnonzero(outside).tolist()
    found.counts[one.name, "out_of_range"] = len(rows)
    limits = f"from {one.shown(low)} to {one.shown(high)}" if high is not None else f"not before {one.shown(low)}"
    for row in found.first_of(rows):
        found.values.append(UnseenValue(row, one.name, limits, one.shown(numbers[row])))
