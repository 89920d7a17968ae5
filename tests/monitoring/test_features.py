"""The monitored features of rows and answers, from any type of value."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from headrace.errors import DataError
from headrace.monitoring.features import answer_values, features_of, input_values
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import Encoder
from headrace.runtime.values import ValueRule
from tests.monitoring.rows import contract, encoder


def inputs(*fields: InputField) -> Contract:
    return contract(inputs=list(fields))


def values(given: Contract, frame: pd.DataFrame, encoder: Encoder | None = None) -> dict[str, Any]:
    return input_values(frame, given, features_of(given, encoder=encoder), encoder)


def test_columns_are_found_by_either_name_and_numbers_are_rounded_as_the_model_gets_them() -> None:
    found = values(contract(), pd.DataFrame({"distance": [0.1, None], "Hour": [3, 4], "carrier": ["AA", None]}))
    assert found["distance"][0] == float(np.float32(0.1)) and np.isnan(found["distance"][1])
    assert found["hour"].tolist() == [3, 4]
    assert found["carrier"].tolist() == ["AA", None]


def test_nullable_numbers_of_pandas_are_read() -> None:
    found = values(contract(), pd.DataFrame({"distance": pd.array([1, None], dtype="Int64"), "hour": [True, False]}))
    assert found["distance"][0] == 1 and np.isnan(found["distance"][1])
    assert found["hour"].tolist() == [1, 0]


def test_a_column_that_is_not_there_is_all_missing() -> None:
    found = values(contract(), pd.DataFrame({"hour": [1, 2]}))
    assert np.isnan(found["distance"]).all() and found["carrier"].tolist() == [None, None]


def test_what_cannot_be_read_is_missing() -> None:
    frame = pd.DataFrame({"distance": ["1.5", "far", None, [1], pd.NA], "hour": [1] * 5, "carrier": ["", 1, 1.0, True, pd.NA]})
    found = values(contract(), frame)
    assert found["distance"][0] == 1.5 and np.isnan(found["distance"][1:]).all()
    assert found["carrier"].tolist() == [None, "1", "1", "true", None]


def test_rules_and_markers_of_missing_values_are_those_of_the_contract() -> None:
    field = InputField(
        name="x", dtype="float64", rule=ValueRule(type="number", decimal=",", thousands="."), missing=["-999", "n/a"]
    )
    found = values(inputs(field), pd.DataFrame({"x": ["1.234,5", "n/a", -999, 2]}))["x"]
    assert found[[0, 3]].tolist() == [1234.5, 2] and np.isnan(found[[1, 2]]).all()
    found = values(inputs(field), pd.DataFrame({"x": [-999.0, 2.0]}))["x"]
    assert np.isnan(found[0]) and found[1] == 2


def test_times_and_excluded_fields_are_not_monitored() -> None:
    given = inputs(InputField(name="at", dtype="float64", rule=ValueRule(type="time")), InputField(name="age", dtype="int64"))
    assert [one.name for one in features_of(given)] == ["age", "(answer)", "(confidence)"]
    assert [one.name for one in features_of(given, exclude=["age", "(answer)"])] == ["(confidence)"]


def test_a_text_has_a_length_and_a_share_of_unknown_tokens() -> None:
    given = inputs(InputField(name="review", dtype="string", tokens=64))
    frame = pd.DataFrame({"review": ["good film", "good odd film odd", "", None]})
    found = values(given, frame, encoder())
    assert found["review: length"].tolist()[:3] == [9, 17, 0] and np.isnan(found["review: length"][3])
    assert found["review: unknown tokens"].tolist()[:2] == [0, 0.5] and np.isnan(found["review: unknown tokens"][2:]).all()
    assert set(values(given, frame)) == {"review: length"}


def test_an_image_has_brightness_contrast_and_size() -> None:
    given = inputs(InputField(name="picture", dtype="uint8", shape=(4, 4)))
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (255, 255, 255)).save(file, "PNG")
    pixels = np.zeros((4, 4), np.uint8)
    pixels[:2] = 255
    found = values(given, pd.DataFrame({"picture": [pixels, file.getvalue(), pixels.tolist(), b"no picture", None]}))
    assert found["picture: brightness"].tolist()[:3] == [0.5, 1, 0.5]
    assert found["picture: contrast"].tolist()[:3] == [0.5, 0, 0.5]
    assert found["picture: width"].tolist()[:3] == [4, 20, 4] and found["picture: height"].tolist()[:3] == [4, 10, 4]
    assert all(np.isnan(column[3:]).all() for column in found.values())


def test_another_array_has_mean_and_spread() -> None:
    given = inputs(InputField(name="signal", dtype="float32", shape=(2,)))
    found = values(given, pd.DataFrame({"signal": [[1.0, 3.0], [np.nan, 1.0], None]}))
    assert found["signal: mean"][0] == 2 and found["signal: spread"][0] == 1
    assert np.isnan(found["signal: mean"][1:]).all()


def test_answers_of_each_kind() -> None:
    classes = answer_values(contract(), np.array([[0.9, 0.1], [0.3, 0.7], [np.nan, np.nan]]))
    assert classes["(answer)"].tolist() == ["no", "yes", None]
    assert classes["(confidence)"][:2].tolist() == [0.9, 0.7]
    value = contract(output="value", labels=None, target="minutes", interval=0.9)
    found = answer_values(value, np.array([[5.0, 4.0, 7.0]]))
    assert (found["(answer)"][0], found["(answer): width"][0]) == (5, 3)
    assert set(found) == {one.name for one in features_of(value) if one.field == "(answer)"}
    labels = contract(output="labels", thresholds=[0.5, 0.2])
    found = answer_values(labels, np.array([[0.9, 0.3], [0.1, 0.1]]))
    assert found["(answer): labels"].tolist() == [2, 0] and found["(confidence)"].tolist() == [0.7, 0.9]
    several = contract(output="values", labels=None, targets=["a", "b"])
    assert answer_values(several, np.array([[1.0, 2.0]]))["(answer): b"].tolist() == [2]
    assert answer_values(contract(output="text", labels=None), ["abc", ""])["(answer): length"].tolist() == [3, 0]


def test_answers_of_another_shape_are_an_error() -> None:
    with pytest.raises(DataError, match=r"answers of shape \[5, 3\]; expected \['rows', 2\]"):
        answer_values(contract(), np.zeros((5, 3)))
