"""The one-dimensional features that are monitored, from the rows and answers of a model.

A number or a category is one feature, of the field's name. A text gives its length and the share of unknown tokens; an image
its brightness, contrast, width and height; another array its mean and spread. Answers give `(answer)` and `(confidence)`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.runtime.contract import Contract
from headrace.runtime.images import FORMATS, MAX_FILE_BYTES, MAX_PIXELS, InvalidImage, open_picture
from headrace.runtime.input_field import InputField
from headrace.runtime.sample_file import TEXT_CHARACTERS
from headrace.runtime.tokenizer import Encoder
from headrace.runtime.values import category_text, is_missing

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "categorical"]
Values = NDArray[Any]
"""Values of one feature `(rows,)`: float64 with NaN for a missing value, or texts with None."""
UNKNOWN_TOKENS = "unknown tokens"
ANSWER = "(answer)"
CONFIDENCE = "(confidence)"


@dataclass(frozen=True)
class Feature:
    """One monitored feature: its name, the field that it comes from, and whether its values are numbers or categories."""

    name: str
    field: str
    kind: Kind
    known: frozenset[str] | None = None
    """The categories that training knew; None where that is not limited."""


def features_of(contract: Contract, exclude: Collection[str] = (), encoder: Encoder | None = None) -> list[Feature]:
    """Returns the monitored features of a model's inputs and answers.

    Times are left out, because later ones are expected.

    Args:
        exclude: names of fields that are not monitored, for example personal ones.
        encoder: converts texts to tokens; without it, unknown tokens are not counted.
    """
    inputs = [field for field in contract.inputs if field.name not in exclude and not field.is_time]
    found = [feature for field in inputs for feature in _of_field(field, encoder is not None)]
    return found + [feature for feature in _of_answers(contract) if feature.field not in exclude]


def input_values(
    frame: pd.DataFrame, contract: Contract, features: Iterable[Feature], encoder: Encoder | None = None
) -> dict[str, Values]:
    """Returns the values of each input feature in a frame of recorded rows or of training rows.

    Columns have the names of the fields, or those of the training data (`InputField.column`). Arrays, pictures and texts are
    values of columns of objects. What cannot be read as the field's type counts as missing; of a column that is not there, all
    values are missing.
    """
    fields = {field.name: field for field in contract.inputs}
    wanted: dict[str, list[Feature]] = {}
    for feature in features:
        if feature.field in fields:
            wanted.setdefault(feature.field, []).append(feature)
    found: dict[str, Values] = {}
    for name, members in wanted.items():
        column = column_of(frame, fields[name])
        if column is None:
            found |= {feature.name: _all_missing(feature.kind, len(frame)) for feature in members}
        else:
            computed = _values_of_field(frame[column], fields[name], members, encoder)
            found |= {feature.name: computed[feature.name] for feature in members}
    return found


def answer_values(contract: Contract, outputs: Any) -> dict[str, Values]:
    """Returns the values of each feature of the answers.

    Args:
        outputs: the graph's outputs `(rows, …)` in the contract's answer shape, or the texts of a model that generates them.

    Raises:
        DataError: the outputs have another shape.
    """
    if contract.output == "text":
        return {f"{ANSWER}: length": np.array([_length(text) for text in outputs], dtype=np.float64)}
    array = np.asarray(outputs, dtype=np.float64)
    if array.shape[1:] != contract.answer_shape:
        raise DataError(
            f"answers of shape {list(array.shape)}; expected {['rows', *contract.answer_shape]}",
            where=contract.model,
            hint="compare answers with the profile of the version that gave them",
        )
    if contract.output == "probabilities":
        return _of_probabilities(array, [str(label) for label in contract.labels or ()])
    if contract.output == "labels":
        thresholds = np.array(contract.thresholds or [0.5] * array.shape[1])
        return {f"{ANSWER}: labels": (array >= thresholds).sum(axis=1).astype(float), CONFIDENCE: _least_sure(array)}
    if contract.output == "values":
        return {f"{ANSWER}: {name}": array[:, i] for i, name in enumerate(contract.targets or ())}
    values = array if array.ndim == 1 else array[:, 0]
    width = {f"{ANSWER}: width": array[:, 2] - array[:, 1]} if contract.interval is not None else {}
    return {ANSWER: values, **width}


def column_of(frame: pd.DataFrame, field: InputField) -> str | None:
    """Returns the column of `frame` that has the values of a field; None if there is none."""
    return next((name for name in (field.name, field.column) if name is not None and name in frame.columns), None)


def _of_field(field: InputField, counts_tokens: bool) -> list[Feature]:
    if is_image(field):
        parts = ["brightness", "contrast", "width", "height"]
    elif field.shape:
        parts = ["mean", "spread"]
    elif field.dtype != "string":
        return [Feature(field.name, field.name, "numeric")]
    elif field.levels:
        return [Feature(field.name, field.name, "categorical", field.known_levels)]
    else:
        parts = ["length", UNKNOWN_TOKENS] if counts_tokens else ["length"]
    return [Feature(f"{field.name}: {part}", field.name, "numeric") for part in parts]


def _of_answers(contract: Contract) -> list[Feature]:
    if contract.output == "probabilities":
        known = frozenset(str(label) for label in contract.labels or ())
        return [Feature(ANSWER, ANSWER, "categorical", known), Feature(CONFIDENCE, CONFIDENCE, "numeric")]
    names = {
        "text": [f"{ANSWER}: length"],
        "labels": [f"{ANSWER}: labels", CONFIDENCE],
        "values": [f"{ANSWER}: {name}" for name in contract.targets or ()],
        "value": [ANSWER, f"{ANSWER}: width"] if contract.interval is not None else [ANSWER],
    }[contract.output]
    return [Feature(name, name.partition(":")[0], "numeric") for name in names]


def is_image(field: InputField) -> bool:
    """Whether a field takes images."""
    return field.dtype == "uint8" and len(field.shape) >= 2


def is_text(field: InputField) -> bool:
    """Whether a field takes free texts."""
    return field.dtype == "string" and not field.levels and not field.shape and not field.is_time


def _values_of_field(
    column: pd.Series[Any], field: InputField, members: list[Feature], encoder: Encoder | None
) -> dict[str, Values]:
    if is_image(field):
        return _named(field, ("brightness", "contrast", "width", "height"), [_picture(value) for value in column])
    if field.shape:
        return _named(field, ("mean", "spread"), [_mean_and_spread(value) for value in column])
    if field.dtype != "string":
        return {field.name: _numbers(column, field)}
    if members[0].kind == "categorical":
        return {field.name: _categories(column, field)}
    texts = [None if is_missing(value, field.missing) else str(value) for value in column]
    found = {f"{field.name}: length": np.array([_length(text) for text in texts], dtype=np.float64)}
    if encoder is not None:
        found[f"{field.name}: {UNKNOWN_TOKENS}"] = unknown_tokens(texts, encoder)
    return found


def _named(field: InputField, parts: tuple[str, ...], rows: list[tuple[float, ...]]) -> dict[str, Values]:
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(parts))
    return {f"{field.name}: {part}": table[:, i] for i, part in enumerate(parts)}


def _numbers(column: pd.Series[Any], field: InputField) -> Values:
    """Returns the numbers of a column, rounded as the served model gets them: a value of training then equals the served
    one."""
    if column.dtype.kind in "iufb":
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        gaps = [gap for gap in (_as_number(text) for text in field.missing) if math.isfinite(gap)]
        if gaps:
            numbers = np.where(np.isin(numbers, gaps), np.nan, numbers)
    else:
        numbers = np.array([_number(value, field) for value in column], dtype=np.float64)
    if field.default is not None:
        numbers = np.where(np.isnan(numbers), field.default, numbers)
    if field.dtype != "float32":
        return numbers
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinity, which is out of range in both
        return numbers.astype(np.float32).astype(np.float64)


def _number(value: Any, field: InputField) -> float:
    if is_missing(value, field.missing):
        return math.nan
    try:
        if isinstance(value, str) and field.rule is not None:
            return float(field.rule.read(value))
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return math.nan


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _categories(column: pd.Series[Any], field: InputField) -> Values:
    """Returns the texts of categories as the contract reads them; the same value is converted once."""
    known: dict[Any, str | None] = {}
    found = np.empty(len(column), dtype=object)
    gaps = column.isna().tolist()
    for i, value in enumerate(column.tolist()):
        if gaps[i] is True:
            continue
        key = (type(value), value)
        try:
            text = known[key]
        except KeyError:
            text = known[key] = _category(value, field)
        except TypeError:  # a list or an object, which is not a category
            text = str(value)
        found[i] = text
    return found


def _category(value: Any, field: InputField) -> str | None:
    if is_missing(value, field.missing) or value == "":
        return None
    text = category_text(value)
    return text.strip() if field.trim else text


def _length(text: Any) -> float:
    return math.nan if text is None else float(len(str(text)))


def unknown_tokens(texts: Sequence[str | None], encoder: Encoder) -> Values:
    """Returns the share of tokens that the vocabulary does not have, of the beginning of each text that a sample keeps; NaN for
    a text without tokens."""
    shares = []
    for text in texts:
        ids = [] if text is None else encoder.tokens(text[:TEXT_CHARACTERS])
        shares.append(ids.count(encoder.unknown) / len(ids) if ids else math.nan)
    return np.array(shares, dtype=np.float64)


def _picture(value: Any) -> tuple[float, float, float, float]:
    """Returns brightness and contrast from 0 to 1, width and height in pixels; NaN for what is not a picture."""
    pixels = _pixels(value)
    if pixels is None:
        return math.nan, math.nan, math.nan, math.nan
    return float(pixels.mean()) / 255, float(pixels.std()) / 255, float(pixels.shape[1]), float(pixels.shape[0])


def _pixels(value: Any) -> NDArray[Any] | None:
    if isinstance(value, bytes):
        try:
            picture = open_picture(value, FORMATS, MAX_FILE_BYTES, MAX_PIXELS)
            return np.asarray(picture.convert("L")) if picture.width * picture.height <= MAX_PIXELS else None
        except (InvalidImage, OSError, ValueError):
            return None
    pixels = _array(value)
    return pixels if pixels is not None and pixels.ndim >= 2 and pixels.size else None


def _mean_and_spread(value: Any) -> tuple[float, float]:
    numbers = _array(value)
    if numbers is None or not numbers.size or not np.isfinite(numbers).all():
        return math.nan, math.nan
    return float(numbers.mean()), float(numbers.std())


def _array(value: Any) -> NDArray[np.float64] | None:
    if value is None or isinstance(value, str | float):
        return None
    try:
        return np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        return None


def _of_probabilities(probabilities: NDArray[np.float64], labels: list[str]) -> dict[str, Values]:
    valid = np.isfinite(probabilities).all(axis=1)
    best = np.where(valid, np.nan_to_num(probabilities).argmax(axis=1), -1)
    names = np.array([*labels, None], dtype=object)  # index -1 is None
    return {ANSWER: names[best], CONFIDENCE: np.where(valid, probabilities.max(axis=1), np.nan)}


def _least_sure(probabilities: NDArray[np.float64]) -> Values:
    """Returns the confidence in the least certain label of each row, 0.5 to 1."""
    found: Values = np.maximum(probabilities, 1 - probabilities).min(axis=1)
    return found


def _all_missing(kind: Kind, rows: int) -> Values:
    return np.full(rows, np.nan) if kind == "numeric" else np.full(rows, None, dtype=object)
