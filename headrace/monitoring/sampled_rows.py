"""The values of a profile's features in sampled rows of requests, as `headrace.serving.samples` reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.monitoring.embedding import Embedding, text_row
from headrace.monitoring.features import ANSWER, CONFIDENCE, UNKNOWN_TOKENS, Values, unknown_tokens
from headrace.monitoring.profile import FeatureProfile, Profile
from headrace.runtime.contract import Contract
from headrace.runtime.thumbnail import from_text
from headrace.runtime.tokenizer import Encoder
from headrace.runtime.values import category_text

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {"length": "characters", "spread": "std"}
"""Parts of features that a sample has under another name."""
PIXEL_PARTS, PIXEL_RANGE = ("brightness", "contrast"), 255.0
"""Of a sample these are in units of the pixels, of a profile from 0 to 1."""


def sampled_values(
    inputs: pd.DataFrame,
    answers: pd.DataFrame,
    confidences: NDArray[np.float64],
    profile: Profile,
    contract: Contract,
    encoder: Encoder | None = None,
) -> dict[str, Values]:
    """Returns the values of each feature of `profile` that samples have, `(rows,)`. Features of pictures have fewer rows where
    samples of an earlier version of Headrace have no thumbnail.

    Args:
        inputs: a column for each field, or for each part of it (`FIELD.characters`).
        answers: the column `answer`, or one for each target.
        confidences: `(rows,)`.
        encoder: the model's own, for unknown tokens.
    """
    embedded = {feature.name for one in profile.embeddings for feature in one.features}
    narrow = {field.name for field in contract.inputs if field.dtype == "float32"}
    found: dict[str, Values] = {}
    for feature in profile.features:
        part = feature.name.removeprefix(feature.field).removeprefix(": ")
        if feature.name in embedded or feature.field in contract.personal or _is_unsampled(feature, part, contract):
            continue
        if part == UNKNOWN_TOKENS:
            if encoder is not None:
                found[feature.name] = unknown_tokens([_text(value) for value in _column(inputs, feature.field)], encoder)
            continue
        if feature.field == CONFIDENCE:
            found[feature.name] = confidences
            continue
        column = (
            _column(answers, _answer_column(part)) if feature.field == ANSWER else _column(inputs, _input_column(feature, part))
        )
        if feature.field == ANSWER and part == "labels":
            column = [len(value) if isinstance(value, list) else None for value in column]
        if feature.kind == "categorical":
            found[feature.name] = _categories(column)
            continue
        numbers = _numbers(column)
        if feature.field in narrow and not part:  # as the served model gets them, and as the profile has them
            numbers = numbers.astype(np.float32).astype(np.float64)
        found[feature.name] = numbers / PIXEL_RANGE if part in PIXEL_PARTS else numbers
    for one in profile.embeddings:
        if one.field not in contract.personal:
            found |= _embedded(one, inputs)
    return found


def _embedded(one: Embedding, inputs: pd.DataFrame) -> dict[str, Values]:
    if one.kind == "text":
        return one.values([text_row(value) for value in _column(inputs, one.field)])
    thumbnails = [from_text(value) for value in _column(inputs, f"{one.field}.thumbnail")]
    return one.values([row for row in thumbnails if row is not None])


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_unsampled(feature: FeatureProfile, part: str, contract: Contract) -> bool:
    """Whether a sample does not have a feature: widths of intervals; of several labels it has the mean probability over all of
    them, and a profile that of the least sure one."""
    return (feature.field == ANSWER and part == "width") or (feature.field == CONFIDENCE and contract.output == "labels")


def _answer_column(part: str) -> str:
    return "answer" if part in ("", "labels") else {"length": "answer.characters"}.get(part, part)


def _input_column(feature: FeatureProfile, part: str) -> str:
    return f"{feature.field}.{COLUMNS.get(part, part)}" if part else feature.field


def _column(frame: pd.DataFrame, name: str) -> list[Any]:
    """Returns a column; of one that no row has, missing values."""
    return list(frame[name]) if name in frame.columns else [None] * len(frame)


def _numbers(column: list[Any]) -> Values:
    return np.array([float(value) if isinstance(value, bool | int | float) else np.nan for value in column], dtype=np.float64)


def _categories(column: list[Any]) -> Values:
    found = np.full(len(column), None, dtype=object)
    found[:] = [None if value in (None, "") or value != value else category_text(value) for value in column]
    return found
