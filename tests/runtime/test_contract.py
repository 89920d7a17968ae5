"""The contract: instances to arrays, with the field at fault in every refusal."""

from __future__ import annotations

import base64
import io
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.runtime import image_values
from headrace.runtime.contract import Contract
from headrace.runtime.images import PictureFormat
from headrace.runtime.input_field import MAX_LOOP_ROWS, InputField
from headrace.runtime.values import ValueRule
from headrace.runtime.violations import ContractViolation, describe

IMAGE = Contract(
    model="pictures",
    task="image-classification",
    output="probabilities",
    labels=[0, 1],
    target="label",
    inputs=[InputField(name="image", dtype="uint8", shape=(2, 2), minimum=0, maximum=255)],
    sample={"image": [[0, 1], [2, 3]]},
)
TABLE = Contract(
    model="flights",
    task="regression",
    output="value",
    target="minutes",
    inputs=[
        InputField(name="distance", dtype="float32"),
        InputField(name="wind", dtype="float32", nullable=True),
        InputField(name="carrier", dtype="string", levels=["UA", "AA"]),
    ],
    sample={"distance": 1.0, "wind": None, "carrier": "UA"},
)


def test_images_become_one_array() -> None:
    feeds = IMAGE.to_feeds([{"image": [[0, 1], [2, 255]]}, {"image": [[9, 9], [9, 9]]}])
    assert feeds["image"].dtype == np.uint8
    np.testing.assert_array_equal(feeds["image"][0], [[0, 1], [2, 255]])


def test_raw_bytes_may_come_as_base64() -> None:
    packed = base64.b64encode(bytes([0, 1, 2, 255])).decode()
    np.testing.assert_array_equal(IMAGE.to_feeds([{"image": packed}])["image"][0], [[0, 1], [2, 255]])


PICTURE = IMAGE.model_copy(
    update={"inputs": [IMAGE.inputs[0].model_copy(update={"accepts": ["array", "base64", "image/png", "image/jpeg"]})]}
)


def file_of(pixels: Any, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(held, kind)
    return held.getvalue()


def test_a_file_may_come_as_base64_or_as_bytes() -> None:
    raw = file_of([[0, 1], [2, 255]])
    rows = [{"image": base64.b64encode(raw).decode()}, {"image": raw}, {"image": [[9, 9], [9, 9]]}, {"image": "AAECAw=="}]
    found = PICTURE.to_feeds(rows)["image"]
    assert found.dtype == np.uint8
    assert found.tolist() == [[[0, 1], [2, 255]], [[0, 1], [2, 255]], [[9, 9], [9, 9]], [[0, 1], [2, 3]]]


@pytest.mark.parametrize(
    "written",
    [
        lambda raw: "data:image/png;base64," + base64.b64encode(raw).decode(),
        lambda raw: base64.encodebytes(raw).decode(),
        lambda raw: base64.encodebytes(raw).decode().replace("\n", "\r\n"),
        lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="),
    ],
    ids=["data URL", "with line breaks", "with Windows' line breaks", "for URLs"],
)
def test_base64_may_be_written_in_every_common_way(written: Callable[[bytes], str]) -> None:
    raw = file_of(np.random.default_rng(0).integers(0, 256, (2, 2)).tolist())
    assert PICTURE.to_feeds([{"image": written(raw)}])["image"].tolist() == PICTURE.to_feeds([{"image": raw}])["image"].tolist()
    pixels = bytes([251, 255, 190, 239])  # with both characters that differ in URLs
    assert PICTURE.to_feeds([{"image": written(pixels)}])["image"].ravel().tolist() == list(pixels)


def test_a_contract_that_takes_no_files_refuses_them() -> None:
    with pytest.raises(ContractViolation, match="base64 of 4 bytes, got"):
        IMAGE.to_feeds([{"image": base64.b64encode(file_of([[0, 1], [2, 255]])).decode()}])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (file_of([[1, 2], [3, 4]])[:40], "damaged|cannot be read"),
        (b"GIF89a", "PNG or JPEG file, got a GIF file"),
        (b"\x00\x01\x02\x03", "4 bytes of another format"),
        (base64.b64encode(b"12345").decode(), "PNG or JPEG file, got 5 bytes"),
        ("ä", "not base64"),
        ("", "0 bytes"),
    ],
)
def test_an_unreadable_picture_is_refused_with_its_row_and_what_was_expected(value: Any, said: str) -> None:
    with pytest.raises(ContractViolation, match=said) as caught:
        PICTURE.to_feeds([{"image": [[0, 0], [0, 0]]}, {"image": value}])
    assert caught.value.path == "instances.1.image"


def test_the_pictures_of_a_request_share_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_values, "MAX_PIXELS", 10)
    raw = base64.b64encode(file_of([[1, 2], [3, 4]])).decode()
    PICTURE.to_feeds([{"image": raw}] * 2)
    with pytest.raises(ContractViolation) as caught:
        PICTURE.to_feeds([{"image": raw}] * 3)
    assert caught.value.path == "instances", "no row is at fault"


def test_a_small_file_counts_by_the_picture_that_it_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_values, "MAX_PIXELS", 40)
    to = PictureFormat(height=4, width=4, channels=1, fit="resize", interpolation="nearest")
    field = InputField(name="image", dtype="uint8", shape=to.shape, picture=to)
    raw = base64.b64encode(file_of([[1]])).decode()
    field.to_array([raw] * 2, "instances")
    with pytest.raises(ContractViolation, match="pictures of at most 40 pixels together"):
        field.to_array([raw] * 3, "instances")


def test_numbers_that_mean_a_missing_value_and_times_outside_of_a_calendar() -> None:
    field = InputField(name="age", dtype="float32", nullable=True, missing=["-999", "n.a."])
    assert np.isnan(field.to_array([-999, -999.0, "n.a.", 5], "instances")).tolist() == [True, True, True, False]
    moment = InputField(name="at", dtype="float64", rule=ValueRule(type="time"), lowest=0.0)
    table = TABLE.model_copy(update={"inputs": [moment]})
    found = table.unseen(table.to_feeds([{"at": "0001-01-01T00:00:00+01:00"}]))
    assert "a time before the year 1" in found.messages("instances")[0]["message"]


def test_true_and_false_are_one_and_zero() -> None:
    field = InputField(name="paid", dtype="float32", nullable=True, boolean=True)
    found = field.to_array([True, False, None, 1, 0.0], "instances")
    np.testing.assert_array_equal(found, np.array([1, 0, np.nan, 1, 0], np.float32))
    assert found.dtype == np.float32
    for wrong in (0.5, "true", [True]):
        with pytest.raises(ContractViolation, match="expected true"):
            field.to_array([True, wrong], "instances")


def test_doubles_keep_their_digits() -> None:
    moment = 1_700_000_000.125
    assert InputField(name="t", dtype="float64").to_array([moment], "instances")[0] == moment
    with pytest.raises(ContractViolation):
        InputField(name="t", dtype="float64").to_array([float("inf")], "instances")


def test_null_is_a_missing_number_if_allowed() -> None:
    feeds = TABLE.to_feeds([{"distance": 1, "wind": None, "carrier": "UA"}, {"distance": 2.5, "carrier": "XX"}])
    assert np.isnan(feeds["wind"]).tolist() == [True, True]
    assert feeds["carrier"].tolist() == ["UA", "XX"]


@pytest.mark.parametrize(
    ("contract", "instance", "path"),
    [
        (IMAGE, {"image": [[0, 1], [2, 256]]}, "instances.0.image"),
        (IMAGE, {"image": [[0, 1], [2, -1]]}, "instances.0.image"),
        (IMAGE, {"image": [[0, 1], [2, 0.5]]}, "instances.0.image"),
        (IMAGE, {"image": [[0, 1], [2]]}, "instances.0.image"),
        (IMAGE, {"image": [0, 1, 2, 3]}, "instances.0.image"),
        (IMAGE, {"image": "not base64!"}, "instances.0.image"),
        (IMAGE, {"image": base64.b64encode(b"abc").decode()}, "instances.0.image"),
        (IMAGE, {"image": [[0, float("nan")], [1, 2]]}, "instances.0.image"),
        (IMAGE, {"image": [[0, "1"], [2, 3]]}, "instances.0.image"),
        (IMAGE, {"image": [[True, False], [True, False]]}, "instances.0.image"),
        (IMAGE, {"image": [[0, None], [2, 3]]}, "instances.0.image"),
        (IMAGE, {"imgae": [[0, 1], [2, 3]]}, "instances.0.imgae"),
        (IMAGE, {}, "instances.0.image"),
        (IMAGE, [1], "instances.0"),
        (TABLE, {"distance": "far", "carrier": "UA"}, "instances.0.distance"),
        (TABLE, {"distance": True, "carrier": "UA"}, "instances.0.distance"),
        (TABLE, {"distance": None, "carrier": "UA"}, "instances.0.distance"),
        (TABLE, {"distance": float("inf"), "carrier": "UA"}, "instances.0.distance"),
        (TABLE, {"distance": 10**400, "carrier": "UA"}, "instances.0.distance"),
        (TABLE, {"distance": 1e300, "carrier": "UA"}, "instances.0.distance"),
        (TABLE, {"distance": 1.0, "carrier": 7}, "instances.0.carrier"),
        (TABLE, {"distance": {"a": 1}, "carrier": "UA"}, "instances.0.distance"),
    ],
)
def test_invalid_input_is_refused_with_its_path(contract: Contract, instance: Any, path: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        contract.to_feeds([instance])
    assert caught.value.path == path


def test_answers_use_labels_and_units_of_the_target() -> None:
    assert IMAGE.to_answers(np.array([[0.25, 0.75]])) == [{"label": 1, "probabilities": {"0": 0.25, "1": 0.75}}]
    assert TABLE.to_answers(np.array([12.5], np.float32)) == [{"minutes": 12.5}]
    sure = TABLE.model_copy(update={"interval": 0.9})
    assert sure.to_answers(np.array([[12.5, 10, 15.25]], np.float32)) == [{"minutes": 12.5, "interval": [10.0, 15.25]}]


def test_the_shape_of_an_answer_follows_from_the_target() -> None:
    sure = TABLE.model_copy(update={"interval": 0.9})
    assert [contract.answer_shape for contract in (IMAGE, TABLE, sure)] == [(2,), (), (3,)]


def test_a_byte_without_limits_never_wraps() -> None:
    field = InputField(name="b", dtype="uint8", shape=(1,))
    with pytest.raises(ContractViolation):
        field.to_array([[-1]], "instances")


def test_the_invalid_row_among_many_is_named() -> None:
    rows = [{"distance": float(i), "carrier": "UA"} for i in range(50)]
    rows[31]["distance"] = "x"
    with pytest.raises(ContractViolation, match=r"instances.31.distance"):
        TABLE.to_feeds(rows)


def test_arrays_are_checked_against_the_same_bounds_and_the_row_is_named() -> None:
    field = InputField(name="count", dtype="int64", minimum=0, maximum=9)
    field.check(np.array([0, 9]), "rows")
    for bad in (10, -1, np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        with pytest.raises(ContractViolation) as caught:
            field.check(np.array([0, bad, 3]), "rows")
        assert caught.value.path == "rows.1.count"
    InputField(name="pixels", dtype="uint8", shape=(2,)).check(np.array([[0, 255]], np.uint8), "rows")
    with pytest.raises(ContractViolation, match=r"rows\.0\.pixels: expected values from 0 to 16"):
        InputField(name="pixels", dtype="uint8", shape=(2,), maximum=16).check(np.array([[0, 17]], np.uint8), "rows")


WHOLE_NUMBERS = [0, 1, -1, 255, 256, 2**53, 2**53 + 1, -(2**63), 10**400]


@pytest.mark.parametrize(
    "field",
    [
        InputField(name="x", dtype="float32"),
        InputField(name="x", dtype="float64", minimum=-1, maximum=1e6),
        InputField(name="x", dtype="float64", nullable=True),
        InputField(name="x", dtype="float32", default=2.5),
        InputField(name="x", dtype="int64", minimum=0),
        InputField(name="x", dtype="uint8"),
        InputField(name="x", dtype="float32", boolean=True),
    ],
    ids=lambda field: f"{field.dtype}",
)
@pytest.mark.parametrize(
    "value",
    [*WHOLE_NUMBERS, 0.5, 3.0, -0.0, 0.1, 1e-320, 1e300, float("nan"), float("inf"), True, None, "1", [1]],
    ids=lambda value: str(value)[:12],
)
def test_a_value_is_accepted_or_refused_alike_in_small_and_large_requests(field: InputField, value: Any) -> None:
    def taken(rows: int) -> Any:
        try:
            found = field.to_array([value] + [1] * (rows - 1), "instances")
        except (ContractViolation, OverflowError) as refused:
            return str(refused)
        return found.dtype, found[0].tobytes()

    assert taken(1) == taken(MAX_LOOP_ROWS) == taken(MAX_LOOP_ROWS + 1)


EXACT = [2**53, -(2**53), 2**53 + 2, 2**60, 10**17, 12345678901234567000, -(10**18)]
"""Held exactly, or the digits of a float that is written without an exponent, as JavaScript and Go do."""
ROUNDED = [2**53 + 1, -(2**53) - 1, 2**63 - 1, 9223372036854775809, 10**16 + 1, 12345678901234567890]


@pytest.mark.parametrize("rows", [1, MAX_LOOP_ROWS + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("value", [*EXACT, *ROUNDED])
def test_a_whole_number_is_not_answered_as_its_neighbour(dtype: Any, shape: tuple[int, ...], value: int, rows: int) -> None:
    field = InputField(name="x", dtype=dtype, shape=shape)
    given: list[Any] = [[0.5, 1] if shape else 1] * (rows - 1)
    given.append([0.5, value] if shape else value)  # beside a float, numpy would round it before it can be looked at
    if value in EXACT:
        found = np.ravel(field.to_array(given, "rows")[-1])[-1]
        assert found == np.dtype(dtype).type(value)
    else:
        with pytest.raises(ContractViolation, match=rf"rows\.{rows - 1}\.x: expected a number that float64 has exactly"):
            field.to_array(given, "rows")
    floats = [[0.5, float(value)] if shape else float(value)]
    assert field.to_array(floats, "rows").dtype == dtype, "a float says that it is rounded"


@pytest.mark.parametrize(
    ("text", "is_exact"), [("9.007.199.254.740.993 kg", False), ("9.007.199.254.740.992", True), ("1,5", True)]
)
def test_whole_numbers_in_texts_are_not_rounded_either(text: str, is_exact: bool) -> None:
    field = InputField(name="x", dtype="float64", rule=ValueRule(decimal=",", strip=["kg"]))
    if is_exact:
        assert field.to_array([text], "rows").shape == (1,)
    else:
        with pytest.raises(ContractViolation, match="a number that float64 has exactly"):
            field.to_array([text], "rows")


@pytest.mark.parametrize(
    ("value", "message"),
    [(2_000_000, "from 1 to 1000000, got 2000000"), (0, "from 1 to 1000000, got 0"), (-1e30, "fits int64")],
)
def test_large_integers_are_shown_without_an_exponent(value: float, message: str) -> None:
    field = InputField(name="tokens", dtype="int64", minimum=1, maximum=1_000_000)
    with pytest.raises(ContractViolation, match=message):
        field.to_array([value], "rows")


def test_a_list_of_another_length_is_refused_without_a_copy_of_its_values() -> None:
    field = InputField(name="image", dtype="uint8", shape=(28, 28))
    long = [0] * 2_000_000
    tracemalloc.start()
    try:
        with pytest.raises(ContractViolation, match=r"rows\.1\.image: expected .* got a list of 2,000,000"):
            field.to_array([[[0] * 28] * 28, long], "rows")
        assert describe(long).startswith("list [0, 0, 0")
        assert describe("eleven") == "str 'eleven'"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_categories_that_are_whole_numbers_are_taken_as_numbers_too() -> None:
    field = InputField(name="store", dtype="string", levels=["3", "17", "-204"])
    assert field.to_array([17, 17.0, "17", "17.0", -204, 5, "other"], "rows").tolist() == [
        "17", "17", "17", "17", "-204", "5", "other",
    ]  # fmt: skip
    for value in (True, 17.5, None, 10**30, float("nan")):
        with pytest.raises(ContractViolation, match=r"rows\.0\.store: expected text or a whole number"):
            field.to_array([value], "rows")
    mixed = InputField(name="plan", dtype="string", levels=["3", "basic"])
    assert mixed.to_array(["3.0"], "rows").tolist() == ["3.0"]
    with pytest.raises(ContractViolation, match="expected text, got int 3"):
        mixed.to_array([3], "rows")
