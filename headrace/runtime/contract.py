"""What goes into a model and what comes out: shared by training and serving. Light: numpy and pydantic (Pillow for a picture).

A contract lies beside every served graph as `contract.json`. Clients speak in *instances*, one mapping of field names to
values a row; the graph takes *feeds*, one array a field with the rows first.
"""

from __future__ import annotations

import base64
import binascii
import math
import reprlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from headrace.runtime.images import MAX_PIXELS, BadPicture, decode, is_picture

Feeds = dict[str, NDArray[Any]]
DType = Literal["float32", "float64", "int64", "uint8", "string"]
WHOLE = 2.0**53
"""Whole numbers beyond it do not survive JSON."""
LARGEST: dict[str, float] = {
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
    "int64": WHOLE,
    "uint8": 255.0,
}
"""Of each type's magnitude."""
FEW = 64
"""Rows that are looked at one by one: as many cost as much as numpy's looks at all of them together."""
PART_NUMBERS = 32_768
"""That numpy reads from lists at once, in about a millisecond."""

SHORT = reprlib.Repr()
"""Shows how a value begins."""
SHORT.maxlevel, SHORT.maxlist, SHORT.maxdict, SHORT.maxstring, SHORT.maxother, SHORT.maxlong = 4, 20, 20, 100, 100, 100


class ContractViolation(ValueError):
    """An instance that breaks the contract: `path` names the field, such as `instances.3.distance`."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"{path}: expected {expected}, got {got}")
        self.path = path
        self.expected = expected
        self.got = got


class InputField(BaseModel):
    """One named input. `shape` is that of one row: empty for a scalar, `(28, 28)` for an image."""

    model_config = ConfigDict(frozen=True)
    name: str
    dtype: DType
    shape: tuple[int, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    """Values beyond these bounds are refused (they are physical limits, such as those of a pixel)."""
    levels: list[str] | None = None
    """Categories seen in training; others are answered as unknown, not refused."""
    nullable: bool = False
    """Whether null stands for a missing value."""
    boolean: bool = False
    """Whether it is true or false, which reach the graph as 1 and 0."""
    accepts: list[str] = []
    """Of an image, the ways to send it: `array`; `base64` of the raw bytes; `image/png` and `image/jpeg`, in base64 or as the
    body of a request. Files become grey and are stretched to `shape`; light stays light."""
    default: float | None = None
    """What a number is that is not given; the field may then be left out, or null."""
    longest: int | None = None
    """Most characters of a text; a longer one is refused."""
    tokens: int | None = None
    """Tokens of a text that the model reads; what comes after them is cut, and changes no answer."""

    def to_array(self, values: list[Any], start: str) -> NDArray[Any]:
        """Rows of this field as one array `(rows, *shape)`.

        Raises:
            ContractViolation: a value of another type or shape, or out of range.
        """
        if self.default is not None:
            values = [self.default if value is None else value for value in values]
        if self.dtype == "string":
            return np.array([self._text(value, f"{start}.{i}.{self.name}") for i, value in enumerate(values)], dtype=object)
        if self.shape:
            self._check_lengths(values, start)
        if self.dtype == "uint8" and self.shape:
            pixels = self._bytes_at_once(values)
            if pixels is not None:
                return pixels
            values = self._unpacked(values, start)
        found = self._few(values) if len(values) <= FEW else None
        found = self._all_at_once(values) if found is None else found
        if found is not None:
            return found
        # One by one, to name the row at fault.
        rows = [self._numbers(value, f"{start}.{i}.{self.name}") for i, value in enumerate(values)]
        return np.stack(rows) if rows else np.zeros((0, *self.shape), self.dtype)

    def check(self, numbers: NDArray[Any], start: str) -> None:
        """Holds `numbers` `(rows, *shape)` against the field's bounds; all at once where all is well.

        Raises:
            ContractViolation: a value out of range, with the path of its row.
        """
        if numbers.dtype == np.uint8 and self._bounds == (0.0, 255.0):
            return  # a byte is never anything else
        try:
            self._check_range(numbers, start)
        except ContractViolation:
            for i, row in enumerate(numbers):
                self._check_range(row, f"{start}.{i}.{self.name}")
            raise

    def _check_lengths(self, values: list[Any], start: str) -> None:
        """A list of another length is told before millions of its values are converted.

        Raises:
            ContractViolation: with the path of its row.
        """
        for i, value in enumerate(values):
            if isinstance(value, list) and len(value) != self.shape[0]:
                raise ContractViolation(f"{start}.{i}.{self.name}", self._expected(), f"a list of {len(value):,}")

    def _bytes_at_once(self, values: list[Any]) -> NDArray[np.uint8] | None:
        """`(rows, height, width)` of images as lists of lists, ten times faster than by numpy; None for a closer look.

        `bytes` takes a list of whole numbers from 0 to 255 and refuses any other value.
        """
        if len(self.shape) != 2 or self._bounds != (0.0, 255.0):
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

    def _few(self, values: list[Any]) -> NDArray[Any] | None:
        """`(rows,)` of plain numbers, several times faster for a few of them than by numpy; None for a closer look."""
        if self.shape or self.boolean:
            return None
        low, high = self._plain
        for value in values:
            if type(value) is float:
                if not low <= value <= high or (self._is_whole and not value.is_integer()):  # NaN is within no bounds
                    return None
            elif type(value) is not int or not low <= value <= high or not -WHOLE <= value <= WHOLE:
                return None
        return np.array(values, self.dtype)

    def _all_at_once(self, values: list[Any]) -> NDArray[Any] | None:
        """`(rows, *shape)`, fifty times faster than row by row; None when some value needs a closer look."""
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
            self._check_range(numbers, "")
        except (ValueError, OverflowError):
            return None
        return numbers.astype(self.dtype)

    def _text(self, value: Any, path: str) -> str:
        if value is None and self.nullable:
            return ""
        if not isinstance(value, str):
            raise ContractViolation(path, "text", describe(value))
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
            if numbers.dtype.kind not in "iuf":  # text, true and false, null or an object among the numbers
                raise TypeError
        except (ValueError, TypeError, OverflowError):
            raise ContractViolation(path, self._expected(), describe(value)) from None
        if numbers.shape != self.shape:
            raise ContractViolation(path, self._expected(), f"shape {list(numbers.shape)}")
        self._check_range(numbers, path)
        return numbers.astype(self.dtype)

    def _unpacked(self, values: list[Any], start: str) -> list[Any]:
        """The values with base64 and files as arrays."""
        if not any(isinstance(value, str | bytes) for value in values):
            return values
        left = MAX_PIXELS
        found = []
        for i, value in enumerate(values):
            if isinstance(value, str | bytes):
                value, pixels = self._image(value, f"{start}.{i}.{self.name}", left)
                left -= pixels
            found.append(value)
        return found

    def _image(self, value: str | bytes, path: str, most_pixels: int) -> tuple[NDArray[np.uint8], int]:
        """An image from base64 of its raw bytes, row by row, or from a file; and how many pixels a file cost to decode."""
        try:
            raw = value if isinstance(value, bytes) else base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):  # ValueError: letters beyond ASCII
            raise ContractViolation(path, self._expected(), "text that is not base64") from None
        if "image/png" in self.accepts and is_picture(raw):
            try:
                return decode(raw, (self.shape[0], self.shape[1]), most_pixels)
            except BadPicture as error:
                raise ContractViolation(path, f"a PNG or JPEG file of at most {MAX_PIXELS:,} pixels", str(error)) from None
        if isinstance(value, bytes) or len(raw) != int(np.prod(self.shape)):
            raise ContractViolation(path, self._expected(), f"{len(raw):,} bytes that are neither")
        return np.frombuffer(raw, np.uint8).reshape(self.shape), 0

    def _check_range(self, numbers: NDArray[Any], path: str) -> None:
        missing = np.isnan(numbers)
        if np.isinf(numbers).any() or (missing.any() and not self.nullable):
            raise ContractViolation(path, "a finite number", "NaN or infinity")
        if (self._is_whole or self.boolean) and (numbers[~missing] % 1).any():
            raise ContractViolation(path, "true or false" if self.boolean else "whole numbers", "a fraction")
        most = LARGEST[self.dtype]
        if (numbers[~missing] > most).any() or (numbers[~missing] < -most).any():  # the magnitude of -2^63 is no int64
            largest = np.nanmax(np.abs(numbers, dtype=np.float64))
            raise ContractViolation(path, f"a number that fits {self.dtype}", _shown(largest))
        low, high = self._bounds
        if (low is not None and (numbers < low).any()) or (high is not None and (numbers > high).any()):
            raise ContractViolation(
                path,
                f"values from {_shown(low)} to {_shown(high)}"
                if low is not None and high is not None
                else f"values {'at least' if high is None else 'at most'} {_shown(low if high is None else high)}",
                f"{_shown(np.nanmin(numbers))} to {_shown(np.nanmax(numbers))}" if numbers.ndim else _shown(numbers),
            )

    @cached_property
    def _row_values(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def _plain(self) -> tuple[float, float]:
        """The least and the most that a plain number may be: within the field's bounds, and of its type."""
        low, high = self._bounds
        most = LARGEST[self.dtype]
        return max(-most, -most if low is None else low), min(most, most if high is None else high)

    @cached_property
    def _is_whole(self) -> bool:
        return self.dtype in ("uint8", "int64")

    @cached_property
    def _bounds(self) -> tuple[float | None, float | None]:
        """The field's own limits; a byte's are never wider than 0 to 255."""
        if self.dtype != "uint8":
            return self.minimum, self.maximum
        return max(0.0, self.minimum or 0.0), min(255.0, 255.0 if self.maximum is None else self.maximum)

    def _expected(self) -> str:
        if self.boolean:
            return "true, false or null" if self.nullable else "true or false"
        kind = {"int64": "a whole number", "uint8": "a whole number from 0 to 255"}.get(self.dtype, "a number")
        shaped = f"{kind} in shape {list(self.shape)}" if self.shape else kind
        if self.dtype == "uint8" and self.shape:
            files = ", or a PNG or JPEG file" if self.accepts else ""
            shaped = f"{shaped}, base64 of {int(np.prod(self.shape)):,} bytes{files}"
        return f"{shaped} or null" if self.nullable or self.default is not None else shaped


class Contract(BaseModel):
    """The whole agreement of one model version with its clients."""

    model_config = ConfigDict(frozen=True)
    model: str
    """The recipe's name."""
    task: str
    inputs: list[InputField]
    output: Literal["probabilities", "value", "text"]
    """`probabilities`: the graph gives `(rows, classes)`; `value`: `(rows,)`, or `(rows, 3)` with an `interval`; `text`: the
    class that answers makes one."""
    interval: float | None = None
    """Of a value: the share of true values that the interval beside it is to hold; the graph gives `(rows, 3)` then: value,
    lower and upper bound."""
    temperature: float | None = None
    """What logits were divided by, for probabilities that can be believed; fitted on validation rows."""
    labels: list[str | int] | None = None
    """Class names in the order of the graph's output, for classification."""
    target: str
    """What is predicted; the name of a regression's answer."""
    sample: dict[str, Any] = Field(description="An instance that works, taken from the test rows.")
    examples: list[dict[str, Any]] = []
    """Further instances that work, where there are several ways to ask."""
    served_by: str = "bentos.models.served_model:ServedModel"
    """The class that answers in the service, `module:class`; a kind that is more than one graph has its own."""
    threads: int = 1
    """Threads of ONNX Runtime."""

    def to_feeds(self, instances: list[Any], start: str = "instances") -> Feeds:
        """Instances as arrays for the graph.

        Raises:
            ContractViolation: a field missing, unknown, or with a value that does not fit.
        """
        names = {field.name for field in self.inputs}
        for i, instance in enumerate(instances):
            if not isinstance(instance, dict):
                raise ContractViolation(
                    f"{start}.{i}", "an object with the fields " + ", ".join(sorted(names)), describe(instance)
                )
            for extra in instance.keys() - names:
                raise ContractViolation(
                    f"{start}.{i}.{extra}", "one of the fields " + ", ".join(sorted(names)), "an unknown field"
                )
            for field in self.inputs:
                if field.name not in instance and not field.nullable and field.default is None:
                    raise ContractViolation(f"{start}.{i}.{field.name}", field.dtype, "nothing")
        return {field.name: field.to_array([row.get(field.name) for row in instances], start) for field in self.inputs}

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Of one row of the graph's output."""
        if self.output == "probabilities":
            return (len(self.labels or ()),)
        return () if self.interval is None else (3,)

    def to_answers(self, outputs: NDArray[Any]) -> list[dict[str, Any]]:
        """The graph's output in the user's terms: a label with probabilities, or a value."""
        if self.output == "value" and self.interval is not None:
            return [{self.target: value, "interval": [low, high]} for value, low, high in outputs.astype(float).tolist()]
        if self.output == "value":
            return [{self.target: float(value)} for value in outputs]
        assert self.labels is not None
        labels, names = self.labels, _as_text(tuple(self.labels))
        return [
            {"label": labels[best], "probabilities": dict(zip(names, [round(p, 6) for p in row], strict=True))}
            for best, row in zip(outputs.argmax(axis=1).tolist(), outputs.tolist(), strict=True)
        ]

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Contract:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=64)
def _as_text(labels: tuple[str | int, ...]) -> list[str]:
    return [str(label) for label in labels]


def array_of(values: list[Any], each: int) -> NDArray[Any]:
    """As `np.asarray`, of elements of `each` numbers, but that other threads get their turn after some: numpy gives them none.

    Raises:
        ValueError, OverflowError: as numpy.
    """
    step = max(1, PART_NUMBERS // max(1, each))
    if len(values) <= step:
        return np.asarray(values)
    return np.concatenate([np.asarray(values[start : start + step]) for start in range(0, len(values), step)])


def describe(value: Any) -> str:
    """A value a client sent, in a few characters: its type and how it begins."""
    if value is None:
        return "null"
    shown = SHORT.repr(value)  # which looks no further than it shows
    return f"{type(value).__name__} {shown if len(shown) < 40 else shown[:37] + '...'}"


def _shown(number: Any) -> str:
    """A number as one writes it: 1000000, where `g` alone has 1e+06."""
    plain = float(number)
    return f"{plain:.0f}" if plain.is_integer() and abs(plain) < 1e15 else f"{plain:g}"
