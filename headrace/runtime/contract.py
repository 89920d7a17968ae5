"""Inputs and outputs of a model, shared by training and serving. Light: numpy and pydantic (Pillow for images).

A contract is stored beside every served graph as `contract.json`. Clients send *instances*, one mapping of field names to
values for each row; the graph takes *feeds*, one array for each field with the rows first.
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
from pydantic import BaseModel, ConfigDict, Field, field_validator

from headrace.runtime.images import MAX_PIXELS, InvalidImage, decode, is_image_file

Feeds = dict[str, NDArray[Any]]
RENAMED_CLASSES = {
    "bentos.model:ServedModel": "bentos.models.onnx_model:OnnxModel",
    "bentos.graph:NodeModel": "bentos.models.nodes:NodeModel",
    "bentos.graphs:GraphModel": "bentos.models.graphs:GraphModel",
    "bentos.text:TextModel": "bentos.models.text:TextModel",
    "bentos.generation:GenerationModel": "bentos.models.generation:GenerationModel",
    "bentos.summaries:SummaryModel": "bentos.models.summaries:SummaryModel",
}
"""Old to new names of served classes: the contract of a registered version has the name that was current at its training."""
DType = Literal["float32", "float64", "int64", "uint8", "string"]
MAX_EXACT_INTEGER = 2.0**53
"""Larger integers lose precision in JSON."""
LARGEST: dict[str, float] = {
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
    "int64": MAX_EXACT_INTEGER,
    "uint8": 255.0,
}
"""Largest magnitude of each type."""
MAX_LOOP_ROWS = 64
"""Up to this many rows are checked in a Python loop, which is then no slower than numpy."""
NUMBERS_PER_CHUNK = 32_768
"""Numbers that numpy reads from lists in one call, in about a millisecond."""

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


class InputField(BaseModel):
    """One named input. `shape` is the shape of one row: empty for a scalar, `(28, 28)` for an image."""

    model_config = ConfigDict(frozen=True)
    name: str
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
    default: float | None = None
    """Default of a number, for which the field may be left out or null."""
    longest: int | None = None
    """Most characters of a text; a longer text is refused."""
    tokens: int | None = None
    """Most tokens of a text that the model reads; further ones are truncated."""

    def to_array(self, values: list[Any], start: str) -> NDArray[Any]:
        """Converts the rows of this field to one array `(rows, *shape)`; `start` is the beginning of paths in errors.

        Raises:
            ContractViolation: a value has another type or shape, or is out of range.
        """
        if self.default is not None:
            values = [self.default if value is None else value for value in values]
        if self.dtype == "string":
            return np.array([self._text(value, f"{start}.{i}.{self.name}") for i, value in enumerate(values)], dtype=object)
        if self.shape:
            self._check_lengths(values, start)
        if self.dtype == "uint8" and self.shape:
            pixels = self._convert_bytes(values)
            if pixels is not None:
                return pixels
            values = self._decode_images(values, start)
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
        if numbers.dtype == np.uint8 and self._bounds == (0.0, 255.0):
            return  # bytes are always within these bounds
        try:
            self._check_range(numbers, start)
        except ContractViolation:
            for i, row in enumerate(numbers):
                self._check_range(row, f"{start}.{i}.{self.name}")
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

    def _convert_scalars(self, values: list[Any]) -> NDArray[Any] | None:
        """Converts plain numbers to `(rows,)`, several times faster than numpy for few rows; None if one may be invalid."""
        if self.shape or self.boolean:
            return None
        low, high = self._scalar_bounds
        for value in values:
            if type(value) is float:
                if not low <= value <= high or (self._is_whole and not value.is_integer()):  # NaN fails every comparison
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
            if numbers.dtype.kind not in "iuf":  # the list contains text, booleans, null or objects
                raise TypeError
        except (ValueError, TypeError, OverflowError):
            raise ContractViolation(path, self._expected(), describe(value)) from None
        if numbers.shape != self.shape:
            raise ContractViolation(path, self._expected(), f"shape {list(numbers.shape)}")
        self._check_range(numbers, path)
        return numbers.astype(self.dtype)

    def _decode_images(self, values: list[Any], start: str) -> list[Any]:
        """Replaces base64 and files by arrays."""
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

    def _image(self, value: str | bytes, path: str, max_pixels: int) -> tuple[NDArray[np.uint8], int]:
        """Decodes base64 of raw bytes in row-major order, or a file; also returns the number of pixels of a file."""
        try:
            raw = value if isinstance(value, bytes) else base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):  # ValueError: non-ASCII characters
            raise ContractViolation(path, self._expected(), "text that is not base64") from None
        if "image/png" in self.accepts and is_image_file(raw):
            try:
                return decode(raw, (self.shape[0], self.shape[1]), max_pixels)
            except InvalidImage as error:
                raise ContractViolation(path, f"a PNG or JPEG file of at most {MAX_PIXELS:,} pixels", str(error)) from None
        if isinstance(value, bytes) or len(raw) != int(np.prod(self.shape)):
            raise ContractViolation(path, self._expected(), f"{len(raw):,} bytes of another format")
        return np.frombuffer(raw, np.uint8).reshape(self.shape), 0

    def _check_range(self, numbers: NDArray[Any], path: str) -> None:
        missing = np.isnan(numbers)
        if np.isinf(numbers).any() or (missing.any() and not self.nullable):
            raise ContractViolation(path, "a finite number", "NaN or infinity")
        if (self._is_whole or self.boolean) and (numbers[~missing] % 1).any():
            raise ContractViolation(path, "true or false" if self.boolean else "whole numbers", "a fraction")
        most = LARGEST[self.dtype]
        if (numbers[~missing] > most).any() or (numbers[~missing] < -most).any():  # the magnitude of -2^63 is not an int64
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
    def _scalar_bounds(self) -> tuple[float, float]:
        """Bounds of a number, from the field and its type."""
        low, high = self._bounds
        most = LARGEST[self.dtype]
        return max(-most, -most if low is None else low), min(most, most if high is None else high)

    @cached_property
    def _is_whole(self) -> bool:
        return self.dtype in ("uint8", "int64")

    @cached_property
    def _bounds(self) -> tuple[float | None, float | None]:
        """The field's limits; those of a byte are within 0 to 255."""
        if self.dtype != "uint8":
            return self.minimum, self.maximum
        return max(0.0, self.minimum or 0.0), min(255.0, 255.0 if self.maximum is None else self.maximum)

    def _expected(self) -> str:
        if self.boolean:
            return "true, false or null" if self.nullable else "true or false"
        number = {"int64": "a whole number", "uint8": "a whole number from 0 to 255"}.get(self.dtype, "a number")
        shaped = f"{number} in shape {list(self.shape)}" if self.shape else number
        if self.dtype == "uint8" and self.shape:
            files = ", or a PNG or JPEG file" if self.accepts else ""
            shaped = f"{shaped}, base64 of {int(np.prod(self.shape)):,} bytes{files}"
        return f"{shaped} or null" if self.nullable or self.default is not None else shaped


class Contract(BaseModel):
    """The interface of one model version: its inputs, its output, and the class that serves it."""

    model_config = ConfigDict(frozen=True)
    model: str
    """The recipe's name."""
    task: str
    inputs: list[InputField]
    output: Literal["probabilities", "value", "text"]
    """`probabilities`: the graph returns `(rows, classes)`; `value`: `(rows,)`, or `(rows, 3)` with an `interval`; `text`: the
    served class generates it."""
    interval: float | None = None
    """Coverage of a prediction interval, from 0 to 1; then the graph returns `(rows, 3)`: value, lower and upper bound."""
    temperature: float | None = None
    """Divisor of the logits, fitted on validation rows to calibrate probabilities."""
    labels: list[str | int] | None = None
    """Class names in the order of the graph's output, for classification."""
    target: str
    """The predicted column; the name of a regression's answer."""
    sample: dict[str, Any] = Field(description="A valid instance, taken from the test rows.")
    examples: list[dict[str, Any]] = []
    """Further valid instances, if there are several kinds of queries."""
    served_by: str = "bentos.models.onnx_model:OnnxModel"
    """The class that serves the model, `module:class`."""
    threads: int = 1
    """Threads of ONNX Runtime."""

    @field_validator("served_by")
    @classmethod
    def _current_name(cls, served_by: str) -> str:
        return RENAMED_CLASSES.get(served_by, served_by)

    def to_feeds(self, instances: list[Any], start: str = "instances") -> Feeds:
        """Converts instances to arrays for the graph; `start` is the beginning of paths in errors.

        Raises:
            ContractViolation: a field is missing, unknown, or has an invalid value.
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
        """Shape of one row of the graph's output."""
        if self.output == "probabilities":
            return (len(self.labels or ()),)
        return () if self.interval is None else (3,)

    def to_answers(self, outputs: NDArray[Any]) -> list[dict[str, Any]]:
        """Converts the graph's output to answers: a label with probabilities, or a value."""
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


def array_of(values: list[Any], numbers_each: int) -> NDArray[Any]:
    """Converts elements of `numbers_each` numbers like `np.asarray`, but in chunks, between which other threads can run.

    Raises:
        ValueError, OverflowError: as numpy.
    """
    step = max(1, NUMBERS_PER_CHUNK // max(1, numbers_each))
    if len(values) <= step:
        return np.asarray(values)
    return np.concatenate([np.asarray(values[start : start + step]) for start in range(0, len(values), step)])


def describe(value: Any) -> str:
    """Returns the type of a client's value and its beginning, in at most 40 characters."""
    if value is None:
        return "null"
    shown = SHORT_REPR.repr(value)  # reads no more of the value than it shows
    return f"{type(value).__name__} {shown if len(shown) < 40 else shown[:37] + '...'}"


def _shown(number: Any) -> str:
    """Formats a number as 1000000, which `g` would format as 1e+06."""
    plain = float(number)
    return f"{plain:.0f}" if plain.is_integer() and abs(plain) < 1e15 else f"{plain:g}"
