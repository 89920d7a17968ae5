"""A field of a contract: what a client may send for it, and how that becomes an array."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from headrace.runtime.image_values import ImageReader
from headrace.runtime.images import PictureFormat
from headrace.runtime.number_limits import DType, NumberLimits, array_of
from headrace.runtime.values import (
    EPOCH,
    LARGEST_INTEGER,
    MAX_EXACT_INTEGER,
    NUMBER,
    WHOLE,
    ValueRule,
    category_text,
    is_missing,
    is_rounded,
    is_rounded_text,
)
from headrace.runtime.violations import ContractViolation, describe, shown_number

EXACT = f"a number that float64 has exactly, as all whole numbers up to {int(MAX_EXACT_INTEGER)}"
"""What a whole number for a field of floats has to be: a neighbour in its place would be the answer to another question."""
MAX_LOOP_ROWS = 64
"""Up to this many rows are checked in a Python loop, which is then no slower than numpy."""

PLAIN_NUMBER = ValueRule(thousands="")
"""How a number that is sent as text is read without a rule of the recipe."""


class InputField(BaseModel):
    """One named input. `shape` is the shape of one row: empty for a scalar, `(28, 28)` for an image."""

    model_config = ConfigDict(frozen=True)
    name: str
    column: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """The column of the training data that the field was read from, where it has another name: files to score may have it."""
    dtype: DType
    shape: tuple[int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    """Values beyond these bounds are refused; they are physical limits, for example those of a pixel."""
    levels: list[str] | None = None
    """Categories seen in training; other values count as unknown and are not refused."""
    nullable: bool = False
    """Whether null is accepted as a missing value."""
    boolean: bool = False
    """Whether the field takes true and false, which the graph gets as 1 and 0."""
    accepts: list[str] = []
    """Formats of an image: `array`; `base64` of the raw bytes; `image/png` and `image/jpeg`, in base64 or as the body of a
    request. Files are converted to grey and stretched to `shape`, without inverting them."""
    picture: PictureFormat | None = Field(default=None, exclude_if=lambda value: value is None)
    """How files of pictures become pixels, in colour too; None (and not stored) for models of pixels."""
    default: float | None = None
    """Default of a number, for which the field may be left out or null."""
    longest: int | None = None
    """Most characters of a text; a longer text is refused."""
    tokens: int | None = None
    """Most tokens of a text that the model reads; further ones are truncated."""
    rule: ValueRule | None = None
    """How texts are read, for a field of numbers, true and false, or times. Times are texts only, and the graph gets seconds
    since 1970 (UTC)."""
    missing: list[str] = []
    """Texts that count as a missing value."""
    trim: bool = False
    """Whether blanks before and after a text are removed."""
    lowest: float | None = None
    highest: float | None = None
    """Smallest and largest number of the training rows; of times the first one only, as later ones are expected. Values beyond
    are answered with a warning, or refused if the contract says so."""

    @cached_property
    def known_levels(self) -> frozenset[str]:
        """The categories that are not reported as unknown: those of training, and a missing value."""
        return frozenset([*(self.levels or ()), ""] if self.nullable else self.levels or ())

    def shown(self, number: Any) -> str:
        """Returns a number of this field as people write it."""
        if self.is_time:
            try:
                return (EPOCH + timedelta(seconds=float(number))).replace(tzinfo=None).isoformat()
            except OverflowError:  # by its zone it is outside of what a calendar has in UTC
                return "a time before the year 1" if number < 0 else "a time after the year 9999"
        return shown_number(number)

    @cached_property
    def is_time(self) -> bool:
        """Whether clients send times, as texts."""
        return self.rule is not None and self.rule.type == "time"

    @cached_property
    def reads_texts(self) -> bool:
        """Whether a field that does not hold text may be sent as text."""
        return self.dtype != "string" and not self.shape and (self.rule is not None or bool(self.missing))

    @property
    def expected_text(self) -> str:
        """What a text has to be, for a field that reads texts."""
        return self.rule.expected if self.rule is not None else self._expected()

    def from_text(self, text: str) -> Any:
        """Converts a text, as a command line or a CSV file has it, to a value for `to_array`: null where it is empty.

        Raises:
            ValueError: the text is not a value of this field.
        """
        if self.dtype == "string" or (self.reads_texts and text != ""):
            return text
        if text == "":
            return None
        if self.boolean and text.casefold() in ("true", "false"):
            return text.casefold() == "true"
        return json.loads(text)

    def to_array(self, values: list[Any], start: str) -> NDArray[Any]:
        """Converts the rows of this field to one array `(rows, *shape)`; `start` is the beginning of paths in errors.

        Raises:
            ContractViolation: a value has another type or shape, or is out of range.
        """
        if self.default is not None:
            values = [self.default if value is None else value for value in values]
        if self.reads_texts:
            values = [self._read(value, f"{start}.{i}.{self.name}") for i, value in enumerate(values)]
        if self.dtype == "string":
            return np.array([self._text(value, f"{start}.{i}.{self.name}") for i, value in enumerate(values)], dtype=object)
        if self.shape:
            self._check_lengths(values, start)
        if self.dtype == "uint8" and self.shape:
            pixels = self._convert_bytes(values)
            if pixels is not None:
                return pixels
            values = self._image_reader.arrays(values, start, self.name)
        found = self._convert_scalars(values) if len(values) <= MAX_LOOP_ROWS else None
        found = self._convert_together(values) if found is None else found
        if found is not None:
            return found
        # One by one, to name the invalid row.
        rows = [self._numbers(value, f"{start}.{i}.{self.name}") for i, value in enumerate(values)]
        return np.stack(rows) if rows else np.zeros((0, *self.shape), self.dtype)

    def check(self, numbers: NDArray[Any], start: str) -> None:
        """Checks `numbers` `(rows, *shape)` against the field's bounds.

        Raises:
            ContractViolation: a value is out of range; the path names its row.
        """
        if numbers.dtype == np.uint8 and self._takes_all_bytes:
            return  # bytes are always within these bounds
        try:
            self._limits.check(numbers, start)
        except ContractViolation:
            for i, row in enumerate(numbers):
                self._limits.check(row, f"{start}.{i}.{self.name}")
            raise

    def _check_lengths(self, values: list[Any], start: str) -> None:
        """Checks the lengths of lists, before millions of their values are converted.

        Raises:
            ContractViolation: a list has another length; the path names its row.
        """
        for i, value in enumerate(values):
            if isinstance(value, list) and len(value) != self.shape[0]:
                raise ContractViolation(f"{start}.{i}.{self.name}", self._expected(), f"a list of {len(value):,}")

    def _convert_bytes(self, values: list[Any]) -> NDArray[np.uint8] | None:
        """Converts images given as lists of lists to `(rows, height, width)`, ten times faster than numpy; None if that fails.

        `bytes` takes a list of integers from 0 to 255 and raises for any other value.
        """
        if len(self.shape) != 2 or not self._takes_all_bytes:
            return None
        height, width = self.shape
        lines: list[bytes] = []
        for image in values:
            if type(image) is not list or len(image) != height:
                return None
            for line in image:
                if type(line) is not list or len(line) != width or type(line[0]) is not int:
                    return None
            try:
                lines += map(bytes, image)
            except (ValueError, TypeError):
                return None
        return np.frombuffer(b"".join(lines), np.uint8).reshape(len(values), height, width)

    def _convert_scalars(self, values: list[Any]) -> NDArray[Any] | None:
        """Converts plain numbers to `(rows,)`, several times faster than numpy for few rows; None if one may be invalid."""
        if self.shape or self.boolean:
            return None
        (low, high), is_whole = self._scalar_range, self._limits.is_whole
        for value in values:
            if type(value) is float:
                if not low <= value <= high or (is_whole and not value.is_integer()):  # NaN fails every comparison
                    return None
            elif type(value) is not int or not low <= value <= high or not -MAX_EXACT_INTEGER <= value <= MAX_EXACT_INTEGER:
                return None
        return np.array(values, self.dtype)

    def _convert_together(self, values: list[Any]) -> NDArray[Any] | None:
        """Converts all rows together to `(rows, *shape)`, fifty times faster than row by row; None if one may be invalid."""
        if not self.shape:
            if self.nullable:
                values = [float("nan") if value is None else value for value in values]
            if self.boolean:
                values = [float(value) if value is True or value is False else value for value in values]
            if not all(type(value) in (int, float) for value in values):
                return None
        try:
            numbers = array_of(values, self._row_values)
            if numbers.dtype.kind not in "iuf" or numbers.shape != (len(values), *self.shape):
                return None
            if self._rounded(values, numbers) is not None:
                return None
            self._limits.check(numbers, "")
        except (ValueError, OverflowError):
            return None
        return numbers.astype(self.dtype)

    def _read(self, value: Any, path: str) -> Any:
        """Converts a text by the field's rule; other values are returned as they are, except of times."""
        if is_missing(value, self.missing) or (self.nullable and value == ""):
            return None
        if not isinstance(value, str):
            if self.is_time and value is not None:
                raise ContractViolation(path, self._expected(), describe(value))
            return value
        rule = self.rule or PLAIN_NUMBER
        try:
            found = rule.read(value)
        except (ValueError, OverflowError):
            raise ContractViolation(path, self._expected(), describe(value)) from None
        if rule.type == "number" and abs(found) >= MAX_EXACT_INTEGER and is_rounded_text(value, rule):
            raise ContractViolation(path, EXACT, describe(value))
        return found

    @cached_property
    def takes_whole_numbers(self) -> bool:
        """Whether all known categories are whole numbers, as codes are: clients may send the numbers themselves. Codes with
        leading zeros are texts: a number would have lost the zeros."""
        return bool(self.levels) and all(WHOLE.fullmatch(level) for level in self.levels or ())

    @cached_property
    def takes_numbers(self) -> bool:
        """Whether all known categories are numbers, some of them with a fraction."""
        return bool(self.levels) and all(NUMBER.fullmatch(level) for level in self.levels or ())

    @cached_property
    def takes_booleans(self) -> bool:
        """Whether the known categories are true and false."""
        return bool(self.levels) and set(self.levels or ()) <= {"true", "false"}

    @cached_property
    def _takes_moments(self) -> bool:
        """Whether all known categories are times, as pandas writes them."""
        pattern = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?")
        return bool(self.levels) and all(pattern.fullmatch(level) for level in self.levels or ())

    def _category(self, value: Any) -> Any:
        """Returns the text of a category that was sent in another type or notation; other values as they are."""
        if self.takes_whole_numbers:
            return _as_code(value)
        if self.takes_booleans:
            value = category_text(value) if isinstance(value, bool) else value
            folded = value.casefold() if isinstance(value, str) else value
            return folded if folded in ("true", "false") else value
        if self.takes_numbers and type(value) in (int, float) and math.isfinite(value):
            return category_text(value)
        if self._takes_moments and isinstance(value, str) and value not in (self.levels or ()):
            try:
                return str(datetime.fromisoformat(value))
            except ValueError:
                return value
        return value

    @cached_property
    def _expected_text(self) -> str:
        if self.takes_whole_numbers:
            return "text or a whole number"
        return "text or a number" if self.takes_numbers else "text, true or false" if self.takes_booleans else "text"

    def _text(self, value: Any, path: str) -> str:
        value = value.strip() if self.trim and isinstance(value, str) else value
        value = None if self.missing and is_missing(value, self.missing) else value
        if value is None and self.nullable:
            return ""
        value = self._category(value)
        if not isinstance(value, str):
            raise ContractViolation(path, self._expected_text, describe(value))
        if self.longest is not None and len(value) > self.longest:
            raise ContractViolation(path, f"at most {self.longest} characters", f"{len(value)}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ContractViolation(path, "text in Unicode", "half of a surrogate pair") from None
        return value

    def _numbers(self, value: Any, path: str) -> NDArray[Any]:
        if value is None and self.nullable:
            value = float("nan")
        if self.boolean and isinstance(value, bool):
            value = float(value)
        if isinstance(value, bool | str | dict) or value is None:
            raise ContractViolation(path, self._expected(), describe(value))
        try:
            numbers = np.asarray(value)
            if numbers.dtype.kind not in "iuf":  # the list contains text, booleans, null or objects
                raise TypeError
        except (ValueError, TypeError, OverflowError):
            raise ContractViolation(path, self._expected(), describe(value)) from None
        if numbers.shape != self.shape:
            raise ContractViolation(path, self._expected(), f"shape {list(numbers.shape)}")
        if (rounded := self._rounded(value, numbers)) is not None:
            raise ContractViolation(path, EXACT, describe(rounded))
        self._limits.check(numbers, path)
        return numbers.astype(self.dtype)

    def _rounded(self, value: Any, numbers: NDArray[Any]) -> int | None:
        """Returns a whole number in `value` that a field of floats would round to a neighbour; `numbers` are its array."""
        if self._limits.is_whole or not (np.abs(numbers, dtype=np.float64) >= MAX_EXACT_INTEGER).any():
            return None
        return _first_rounded(value)

    @cached_property
    def _row_values(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def _image_reader(self) -> ImageReader:
        return ImageReader(self.shape, self.picture, "image/png" in self.accepts, self._expected())

    @cached_property
    def _scalar_range(self) -> tuple[float, float]:
        return self._limits.range

    @cached_property
    def _takes_all_bytes(self) -> bool:
        return (self._limits.low, self._limits.high) == (0.0, 255.0)

    @cached_property
    def _limits(self) -> NumberLimits:
        low, high = self.minimum, self.maximum
        if self.dtype == "uint8":
            low, high = max(0.0, low or 0.0), min(255.0, 255.0 if high is None else high)
        return NumberLimits(self.dtype, low, high, self.nullable, self.boolean)

    def _expected(self) -> str:
        if self.is_time and self.rule is not None:
            return self.rule.expected + (" or null" if self.nullable else "")
        if self.boolean:
            texts = f", or {self.rule.expected}" if self.rule is not None else ""
            return ("true, false or null" if self.nullable else "true or false") + texts
        number = {"int64": "a whole number", "uint8": "a whole number from 0 to 255"}.get(self.dtype, "a number")
        number = self.rule.expected if self.rule is not None else number
        shaped = f"{number} in shape {list(self.shape)}" if self.shape else number
        if self.dtype == "uint8" and self.shape:
            files = ", or a PNG, JPEG or WebP file" if self.picture else ", or a PNG or JPEG file" if self.accepts else ""
            shaped = f"{shaped}, base64 of {int(np.prod(self.shape)):,} bytes{files}"
        return f"{shaped} or null" if self.nullable or self.default is not None else shaped


def _first_rounded(value: Any) -> int | None:
    if isinstance(value, list):
        return next((found for one in value if (found := _first_rounded(one)) is not None), None)
    return value if type(value) is int and is_rounded(value) else None


def _as_code(value: Any) -> Any:
    """Returns a whole number, also one with `.0`, as the text of a category; other values as they are."""
    if type(value) is float and value.is_integer() and abs(value) <= MAX_EXACT_INTEGER:
        return str(int(value))
    if type(value) is int and abs(value) <= LARGEST_INTEGER:
        return str(value)
    if isinstance(value, str) and (found := re.fullmatch(r"(-?[0-9]+)\.0+", value)):
        return found.group(1)
    return value
