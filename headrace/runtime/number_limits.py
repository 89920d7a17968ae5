"""What numbers a field of a contract takes: finite ones, whole ones where the type asks for it, within its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.values import MAX_EXACT_INTEGER
from headrace.runtime.violations import ContractViolation, shown_number

DType = Literal["float32", "float64", "int64", "uint8", "string"]
LARGEST: dict[str, float] = {
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
    "int64": MAX_EXACT_INTEGER,
    "uint8": 255.0,
}
"""Largest magnitude of each type."""
NUMBERS_PER_CHUNK = 32_768
"""Numbers that numpy reads from lists in one call, in about a millisecond."""


@dataclass(frozen=True)
class NumberLimits:
    """The numbers that a field takes."""

    dtype: DType
    low: float | None
    high: float | None
    """Bounds of the field; those of a byte are within 0 to 255."""
    nullable: bool
    boolean: bool

    @property
    def is_whole(self) -> bool:
        return self.dtype in ("uint8", "int64")

    @property
    def range(self) -> tuple[float, float]:
        """Bounds of a number, from the field and its type."""
        most = LARGEST[self.dtype]
        return max(-most, -most if self.low is None else self.low), min(most, most if self.high is None else self.high)

    def check(self, numbers: NDArray[Any], path: str) -> None:
        """
        Args:
            numbers: of any shape; NaN is a missing value.
            path: names the field in an error.

        Raises:
            ContractViolation: a number is not finite, has a fraction that it must not have, or is out of range.
        """
        missing = np.isnan(numbers)
        if np.isinf(numbers).any() or (missing.any() and not self.nullable):
            raise ContractViolation(path, "a finite number", "NaN or infinity")
        known = numbers[~missing]
        if (self.is_whole or self.boolean) and (known % 1).any():
            raise ContractViolation(path, "true or false" if self.boolean else "whole numbers", "a fraction")
        if self.boolean and ((known < 0) | (known > 1)).any():
            raise ContractViolation(path, "true or false", _range_of(known))
        most = LARGEST[self.dtype]
        if (known > most).any() or (known < -most).any():  # the magnitude of -2^63 is not an int64
            largest = np.nanmax(np.abs(numbers, dtype=np.float64))
            raise ContractViolation(path, f"a number that fits {self.dtype}", shown_number(largest))
        if (self.low is not None and (numbers < self.low).any()) or (self.high is not None and (numbers > self.high).any()):
            raise ContractViolation(path, self._expected(), _range_of(known) if numbers.ndim else shown_number(numbers))

    def _expected(self) -> str:
        if self.low is not None and self.high is not None:
            return f"values from {shown_number(self.low)} to {shown_number(self.high)}"
        if self.high is None:
            return f"values at least {shown_number(self.low)}"
        return f"values at most {shown_number(self.high)}"


def _range_of(numbers: NDArray[Any]) -> str:
    return f"{shown_number(numbers.min())} to {shown_number(numbers.max())}"


def array_of(values: list[Any], numbers_each: int) -> NDArray[Any]:
    """Converts elements of `numbers_each` numbers like `np.asarray`, but in chunks, between which other threads can run.

    Raises:
        ValueError, OverflowError: as numpy.
    """
    step = max(1, NUMBERS_PER_CHUNK // max(1, numbers_each))
    if len(values) <= step:
        return np.asarray(values)
    return np.concatenate([np.asarray(values[start : start + step]) for start in range(0, len(values), step)])
