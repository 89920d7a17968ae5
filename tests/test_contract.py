"""The contract: instances to arrays, with the field at fault in every refusal."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from headrace.contract import Contract, ContractViolation, InputField

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


def test_null_is_a_missing_number_where_that_is_allowed() -> None:
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
def test_what_breaks_the_contract_is_refused_with_its_path(contract: Contract, instance: Any, path: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        contract.to_feeds([instance])
    assert caught.value.path == path


def test_answers_are_in_the_users_terms() -> None:
    assert IMAGE.to_answers(np.array([[0.25, 0.75]])) == [{"label": 1, "probabilities": {"0": 0.25, "1": 0.75}}]
    assert TABLE.to_answers(np.array([12.5], np.float32)) == [{"minutes": 12.5}]


def test_a_byte_without_limits_never_wraps() -> None:
    field = InputField(name="b", dtype="uint8", shape=(1,))
    with pytest.raises(ContractViolation):
        field.to_array([[-1]], "instances")


def test_many_rows_name_the_one_at_fault() -> None:
    rows = [{"distance": float(i), "carrier": "UA"} for i in range(50)]
    rows[31]["distance"] = "x"
    with pytest.raises(ContractViolation, match=r"instances.31.distance"):
        TABLE.to_feeds(rows)
