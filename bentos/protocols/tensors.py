"""Converts tensors of the Open Inference Protocol v2, in JSON or in bytes behind it, to feeds of a graph and from its outputs.

https://github.com/kserve/open-inference-protocol and Triton's binary tensor data extension. Numbers are little-endian in
row-major order; a BYTES tensor has, for each element, its length in 4 bytes and then the element.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from bentos.protocols.server import MAX_INSTANCES
from headrace.runtime import json_pieces
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.http import Refused
from headrace.runtime.input_field import InputField
from headrace.runtime.number_limits import array_of
from headrace.runtime.values import gap_numbers
from headrace.runtime.violations import ContractViolation, describe

DATATYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "uint8": "UINT8", "string": "BYTES"}
WIRE: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
}
EXACT = {"float32": 2**24, "float64": 2**53}
"""The largest whole number to which all are exact, by dtype."""
_OF_DTYPE = {np.dtype(name): datatype for name, datatype in DATATYPES.items() if name != "string"}
"""Datatype by dtype: looking up a dtype's name costs ten times as much."""
Values = NDArray[Any] | list[str]
"""One output: numbers with the rows first, or a text for each row."""


class Tensor(msgspec.Struct):
    """An input tensor."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class RequestedOutput(msgspec.Struct):
    """An output that the client requests."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(msgspec.Struct):
    """JSON of an inference request."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[RequestedOutput] | None = None
    parameters: dict[str, Any] = {}


class _RawTensor(Tensor):
    data: msgspec.Raw = msgspec.Raw(b"null")


class _RawInferenceRequest(InferenceRequest):
    """The same request, with the data of each tensor not decoded yet."""

    inputs: list[_RawTensor]  # type: ignore[assignment]  # read only


_decode = msgspec.json.Decoder(InferenceRequest).decode
_decode_raw = msgspec.json.Decoder(_RawInferenceRequest).decode


def parse(body: bytes, json_bytes: str) -> tuple[InferenceRequest, int]:
    """Returns the JSON of a request, and the offset of the bytes behind it. `json_bytes` is Inference-Header-Content-Length.

    Raises:
        Refused: 400, that length or the JSON is invalid.
    """
    end = len(body)
    if json_bytes:
        if not json_bytes.isdecimal() or len(json_bytes) > 10 or int(json_bytes) > end:
            raise bad_request(f"Inference-Header-Content-Length: expected 0 to {end} bytes, got {json_bytes[:40]!r}")
        end = int(json_bytes)
    try:
        return _read(body if end == len(body) else memoryview(body)[:end]), end
    except RecursionError:
        raise bad_request("the JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise bad_request(f"the request does not fit the protocol: {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise bad_request(f"the request is not valid JSON: {error}") from None


def _read(text: bytes | memoryview) -> InferenceRequest:
    if len(text) > json_pieces.PIECE_BYTES:
        with suppress(msgspec.ValidationError, UnicodeDecodeError):  # raised below, with its position in the whole body
            asked = _decode_raw(text)
            for tensor in asked.inputs:
                tensor.data = json_pieces.decode_value(tensor.data)
            return asked
    return _decode(text)


class TensorReader:
    """Converts the tensors of a request to the feeds of one contract."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._slots = {field.name: _Slot(field) for field in contract.inputs}
        self.takes_images = any(slot.takes_files for slot in self._slots.values())

    def describe(self) -> list[dict[str, Any]]:
        """Returns name, datatype and shape of each input; -1 is the number of rows."""
        return [
            {"name": name, "datatype": slot.datatype, "shape": [-1, *slot.field.shape]} for name, slot in self._slots.items()
        ]

    def read(self, asked: InferenceRequest, body: bytes, start: int) -> Feeds:
        """Returns one array for each field, `(rows, *shape)`; numbers sent as bytes are not copied.

        Raises:
            Refused: 400, tensors and bytes do not fit together; 413, too many rows.
            ContractViolation: a tensor is not in the contract, or a value breaks it.
        """
        feeds: Feeds = {}
        rows = 0
        for tensor in asked.inputs:
            slot = self._slots.get(tensor.name)
            if slot is None:
                self._refuse_name(tensor.name)
            if tensor.name in feeds:
                raise bad_request(f"inputs: {tensor.name!r} occurs twice")
            count = slot.rows_of(tensor)
            if rows not in (0, count):
                raise bad_request(f"inputs.{tensor.name}.shape: expected {rows} rows, as in the previous input, got {count}")
            rows = count
            size = tensor.parameters.get("binary_data_size")
            if size is None:
                feeds[tensor.name] = slot.from_json(tensor, rows)
                continue
            if type(size) is not int or not 0 <= size <= len(body) - start:
                raise bad_request(
                    f"inputs.{tensor.name}.parameters.binary_data_size: expected at most the {len(body) - start} bytes that "
                    f"are left of the body, got {describe(size)}"
                )
            feeds[tensor.name] = slot.from_bytes(tensor, rows, body, start, size)
            start += size
        if start != len(body):
            raise bad_request(f"{len(body) - start} bytes of the body belong to no input (binary_data_size)")
        if len(feeds) < len(self._slots):
            self._fill(feeds, rows)
        self.contract.check_seen(feeds, "rows")
        return feeds

    def _fill(self, feeds: Feeds, rows: int) -> None:
        """Fills in the defaults of optional fields."""
        for name, slot in self._slots.items():
            if name in feeds:
                continue
            if not rows or (slot.field.default is None and not slot.field.nullable):
                raise ContractViolation(f"inputs.{name}", f"a tensor {slot.datatype} {slot.expected_shape}", "nothing")
            feeds[name] = slot.field.to_array([None] * rows, "rows")

    def _refuse_name(self, name: str) -> NoReturn:
        close = difflib.get_close_matches(name, self._slots, n=1)
        near = f" (did you mean {close[0]!r}?)" if close else ""
        raise ContractViolation("inputs", f"tensors named {', '.join(self._slots)}{near}", describe(name))


class _Slot:
    """One field of a contract as a tensor."""

    def __init__(self, field: InputField) -> None:
        self.field = field
        self.datatype = "BYTES" if field.is_time else DATATYPES[field.dtype]
        self.takes_files = "image/png" in field.accepts
        self.expected_shape = f"[rows{''.join(f', {size}' for size in field.shape)}]"
        self._values = math.prod(field.shape)
        self._shape = list(field.shape)

    def rows_of(self, tensor: Tensor) -> int:
        """Returns the rows of `tensor`, after checking its datatype and shape. A scalar may have an axis of length 1."""
        files = self.takes_files and tensor.datatype == "BYTES"  # which have no shape; nor have texts
        if tensor.datatype != self.datatype and not files and not self._converts(tensor.datatype):
            also = " (or BYTES of PNG or JPEG files)" if self.takes_files else ""
            raise ContractViolation(f"inputs.{tensor.name}.datatype", self.datatype + also, describe(tensor.datatype))
        shape = [] if files else self._shape
        rest = tensor.shape[1:]
        if not tensor.shape or tensor.shape[0] < 1 or (rest != shape and (shape or rest != [1])):
            raise ContractViolation(
                f"inputs.{tensor.name}.shape", f"{'[rows]' if files else self.expected_shape}", f"{tensor.shape}"[:100]
            )
        if tensor.shape[0] > MAX_INSTANCES:
            raise Refused(413, "too_many_instances", f"{tensor.shape[0]} rows exceed the limit of {MAX_INSTANCES}")
        return tensor.shape[0]

    def _converts(self, datatype: str) -> bool:
        """Whether tensors of another type are taken, as long as their values are in range and none is rounded."""
        if datatype == "BYTES":
            return self.field.reads_texts
        if datatype not in WIRE or self.field.is_time:
            return False
        if self.field.dtype == "string":
            if datatype == "BOOL":
                return self.field.takes_booleans
            takes_fractions = self.field.takes_numbers and not self.field.takes_whole_numbers
            is_whole = datatype.startswith(("INT", "UINT"))
            return (is_whole and self.field.takes_numbers) or (datatype == "FP64" and takes_fractions)
        if datatype == "BOOL":
            return self.field.boolean
        return datatype.startswith(("INT", "UINT")) or (datatype.startswith("FP") and self.field.dtype in EXACT)

    def _require_exact(self, numbers: NDArray[Any], tensor: Tensor) -> None:
        """Checks whole numbers that are sent for a field of floats.

        Raises:
            ContractViolation: one is so large that it would be rounded.
        """
        most = EXACT.get(self.field.dtype)
        if most is None or not tensor.datatype.startswith(("INT", "UINT")) or not numbers.size:
            return
        if int(numbers.max()) <= most and int(numbers.min()) >= -most:
            return
        kind = np.dtype(self.field.dtype).type
        large = numbers[(numbers > most) | (numbers < -most)].tolist()
        if (rounded := next((number for number in large if int(kind(number)) != number), None)) is not None:
            expected = f"whole numbers from -{most} to {most}, or larger ones that {self.datatype} has exactly"
            raise ContractViolation(f"inputs.{tensor.name}.data", expected, str(rounded))

    def from_bytes(self, tensor: Tensor, rows: int, body: bytes, start: int, size: int) -> NDArray[Any]:
        if tensor.datatype == "BYTES":
            elements = _elements(tensor.name, body, start, size, rows)
            return self.field.to_array(elements if self.takes_files else _texts(tensor.name, elements), "rows")
        wire, count = WIRE[tensor.datatype], rows * self._values
        if size != count * wire.itemsize:
            expected = f"{count * wire.itemsize} for {tensor.datatype} {tensor.shape}"
            raise bad_request(f"inputs.{tensor.name}.parameters.binary_data_size: expected {expected}, got {size}")
        numbers: NDArray[Any] = np.frombuffer(body, wire, count, start).reshape(rows, *self._shape)
        if not numbers.flags.aligned:  # the JSON in front of it may have any length
            numbers = numbers.copy()
        if self.field.dtype == "string":
            return self.field.to_array(numbers.tolist(), "rows")
        if tensor.datatype in ("BOOL", "FP16"):
            numbers = numbers.astype(np.float32)
        self._require_exact(numbers, tensor)
        gaps = gap_numbers(tuple(self.field.missing)) if self.field.missing and not self._shape else frozenset[float]()
        if gaps and tensor.datatype != "BOOL":
            numbers = _without(numbers, gaps)
        self.field.check(numbers, "rows")
        return numbers if numbers.dtype == self.field.dtype else numbers.astype(self.field.dtype)

    def from_json(self, tensor: Tensor, rows: int) -> NDArray[Any]:
        """Converts `data`, which may be nested or flat."""
        data, path = tensor.data, f"inputs.{tensor.name}.data"
        if not isinstance(data, list):
            raise ContractViolation(path, "a list, or the parameter binary_data_size", describe(data))
        try:
            if not self._shape or tensor.datatype == "BYTES":
                found = self.field.to_array(_flat(data, rows, path), "rows")
                if tensor.datatype != self.datatype and self.field.dtype in EXACT:
                    given = [value for value in _flat(data, rows, path) if type(value) in (int, float)]
                    self._require_exact(np.asarray(given), tensor)
                return found
            numbers = array_of(data, 1 if len(data) > rows else self._values)
        except (ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, ContractViolation):
                raise
            raise ContractViolation(path, f"numbers in shape {tensor.shape}", "other values") from None
        if numbers.dtype.kind not in "iuf" or numbers.size != rows * self._values:
            expected, got = f"{rows * self._values} numbers", f"{numbers.size} values of type {numbers.dtype}"
            raise ContractViolation(path, expected, got)
        numbers = numbers.reshape(rows, *self._shape)
        self._require_exact(numbers, tensor)
        self.field.check(numbers, "rows")
        return numbers.astype(self.field.dtype)


def _without(numbers: NDArray[Any], gaps: frozenset[float]) -> NDArray[Any]:
    """Returns numbers with NaN for those that mean a missing value."""
    kind = numbers.dtype if numbers.dtype.kind == "f" else np.dtype(np.float64)
    found = np.isin(numbers.astype(kind), np.array(sorted(gaps), kind))
    return np.where(found, np.array(np.nan, kind), numbers.astype(kind)) if found.any() else numbers


def _flat(data: list[Any], rows: int, path: str) -> list[Any]:
    """Returns one value for each row, from `[1, 2]` or `[[1], [2]]`."""
    if len(data) != rows:
        raise ContractViolation(path, f"{rows} values", f"{len(data)}")
    return [value[0] if isinstance(value, list) and len(value) == 1 else value for value in data]


def _elements(name: str, body: bytes, start: int, size: int, count: int) -> list[bytes]:
    """Returns the elements of a BYTES tensor, which have to fill `size` bytes."""
    end, found = start + size, []
    for i in range(count):
        length = int.from_bytes(body[start : start + 4], "little")
        if start + 4 + length > end:
            raise bad_request(f"inputs.{name}: element {i} of {count} runs past the {size} bytes of its tensor")
        found.append(body[start + 4 : start + 4 + length])
        start += 4 + length
    if start != end:
        raise bad_request(f"inputs.{name}: {end - start} of its {size} bytes follow its {count} elements")
    return found


def _texts(name: str, elements: list[bytes]) -> list[str]:
    found = []
    for i, element in enumerate(elements):
        try:
            found.append(element.decode())
        except UnicodeDecodeError:
            raise ContractViolation(f"rows.{i}.{name}", "text in UTF-8", "other bytes") from None
    return found


def select_outputs(asked: InferenceRequest, found: dict[str, Values]) -> list[tuple[str, Values, bool]]:
    """Returns the requested outputs (all by default), each with whether it is sent as bytes.

    Raises:
        Refused: 400, an unknown output or an unsupported parameter.
    """
    as_bytes = asked.parameters.get("binary_data_output") is True
    if not asked.outputs:
        return [(name, values, as_bytes) for name, values in found.items()]
    picked = []
    for output in asked.outputs:
        if output.name not in found:
            raise bad_request(f"outputs: expected one of {', '.join(found)}, got {output.name[:100]!r}")
        for unknown in ("classification", "shared_memory_region"):
            if output.parameters.get(unknown):
                raise bad_request(f"outputs.{output.name}.parameters.{unknown}: this server does not support it")
        picked.append((output.name, found[output.name], output.parameters.get("binary_data", as_bytes) is True))
    return picked


def encode(head: dict[str, Any], picked: Sequence[tuple[str, Values, bool]]) -> tuple[bytes, int | None]:
    """Returns a response's body, JSON and then bytes, and the size of the JSON, or None if there are no bytes."""
    outputs, behind = [], []
    for name, values, as_bytes in picked:
        shape = [len(values)] if isinstance(values, list) else list(values.shape)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(values), "shape": shape}
        if as_bytes:
            raw = _raw(values)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            behind.append(raw)
        else:
            tensor["data"] = values if isinstance(values, list) else values.ravel().tolist()
        outputs.append(tensor)
    head["outputs"] = outputs
    text = msgspec.json.encode(head)
    return (b"".join([text, *behind]), len(text)) if behind else (text, None)


def datatype_of(values: Values) -> str:
    return "BYTES" if isinstance(values, list) else _OF_DTYPE[values.dtype]


def _raw(values: Values) -> bytes:
    if isinstance(values, list):
        encoded = [value.encode() for value in values]
        return b"".join([part for text in encoded for part in (len(text).to_bytes(4, "little"), text)])
    raw: bytes = np.ascontiguousarray(values, WIRE[datatype_of(values)]).tobytes()
    return raw


def bad_request(message: str) -> Refused:
    return Refused(400, "bad_request", message)
