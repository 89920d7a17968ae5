"""Tensors of other number types than the contract's: taken where no value is rounded, else refused with field and values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bentos.protocols.tensors import WIRE, TensorReader, parse
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.input_field import InputField
from headrace.runtime.violations import ContractViolation

FIELDS = [
    InputField(name="age", dtype="float32"),
    InputField(name="member", dtype="float32", boolean=True),
    InputField(name="visits", dtype="int64"),
    InputField(name="store", dtype="string", levels=["3", "17", "204"]),
    InputField(name="cents", dtype="float64"),
]
BASE: dict[str, tuple[str, list[Any]]] = {
    "age": ("FP32", [1.0, 2.0]),
    "member": ("FP32", [1, 0]),
    "visits": ("INT64", [3, 4]),
    "store": ("BYTES", ["3", "17"]),
    "cents": ("FP64", [1, 2]),
}


def infer(binary: bool, **changed: tuple[str, list[Any]]) -> Feeds:
    """Reads two rows; keywords are datatype and values of a field."""
    inputs, tail = [], b""
    for name, (datatype, values) in (BASE | changed).items():
        tensor: dict[str, Any] = {"name": name, "shape": [2], "datatype": datatype}
        if binary and name in changed:
            raw = np.array(values, WIRE[datatype]).tobytes()
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            tensor["data"] = values
        inputs.append(tensor)
    head = json.dumps({"inputs": inputs}).encode()
    contract = Contract(
        model="m", task="classification", inputs=FIELDS, output="probabilities", labels=["a", "b"], target="y", sample={}
    )
    asked, start = parse(head + tail, str(len(head)) if tail else "")
    return TensorReader(contract).read(asked, head + tail, start)


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "bytes"])
def test_numbers_of_another_type_are_taken_where_none_is_rounded(binary: bool) -> None:
    for datatype in ("FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"):
        ages = infer(binary, age=(datatype, [1, 2]))["age"]
        assert ages.tolist() == [1, 2] and ages.dtype == np.float32, datatype
    assert infer(binary, age=("INT64", [2**24, -(2**24)]))["age"].tolist() == [2**24, -(2**24)]
    assert infer(binary, age=("FP64", [62.1, 1]))["age"].tolist() == [np.float32(62.1), 1]
    assert infer(binary, member=("BOOL", [True, False]))["member"].tolist() == [1, 0]
    assert infer(binary, visits=("INT32", [7, -8]))["visits"].tolist() == [7, -8]
    assert infer(binary, store=("INT64", [17, 204]))["store"].tolist() == ["17", "204"]


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "bytes"])
@pytest.mark.parametrize(
    ("field", "datatype", "values", "message"),
    [
        (
            "age",
            "INT64",
            [1, 2**24 + 1],
            r"inputs\.age\.data: expected whole numbers from -16777216 to 16777216, or larger ones .* FP32 .*, got 16777217",
        ),
        ("age", "FP64", [1e300, 1], r"rows.*\.age: expected a number that fits float32"),
        ("age", "BOOL", [True, False], r"inputs\.age\.datatype: expected FP32, got str 'BOOL'"),
        ("visits", "FP32", [1, 2], r"inputs\.visits\.datatype: expected INT64"),
        ("store", "FP32", [1, 2], r"inputs\.store\.datatype: expected BYTES"),
    ],
)
def test_other_numbers_are_refused_with_the_field(
    binary: bool, field: str, datatype: str, values: list[Any], message: str
) -> None:
    with pytest.raises(ContractViolation, match=message):
        infer(binary, **{field: (datatype, values)})


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "bytes"])
@pytest.mark.parametrize(
    ("datatype", "value", "is_taken"),
    [
        ("INT64", 2**53, True),
        ("INT64", 2**60, True),
        ("INT64", 2**53 + 1, False),
        ("INT64", 2**63 - 1, False),
        ("INT64", -(2**53) - 1, False),
        ("UINT64", 2**64 - 1, False),
        ("FP64", 1e17, True),
    ],
)
def test_a_field_of_doubles_takes_no_whole_number_for_its_neighbour(
    binary: bool, datatype: str, value: float, is_taken: bool
) -> None:
    if is_taken:
        assert infer(binary, cents=(datatype, [1, value]))["cents"].tolist() == [1.0, float(value)]
        return
    with pytest.raises(ContractViolation, match="exactly"):
        infer(binary, cents=(datatype, [1, value]))
