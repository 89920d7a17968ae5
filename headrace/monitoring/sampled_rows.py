"""The values of a profile's features in sampled rows of requests, as replicas keep them (`bentos.telemetry.sample_rows`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.monitoring.features import ANSWER, CONFIDENCE, Values
from headrace.monitoring.profile import FeatureProfile, Profile
from headrace.runtime.contract import Contract
from headrace.runtime.values import category_text

UNSAMPLED = ("unknown tokens", "width of the interval")
"""Parts of features that a sample does not have."""
PIXEL_RANGE = 255.0


def values_of_rows(rows: Sequence[Mapping[str, Any]], profile: Profile, contract: Contract) -> dict[str, Values]:
    """Returns the values of each feature of `profile` that samples have, `(rows,)`.

    Args:
        rows: each with `inputs` (by field), `answer` and `confidence`.
    """
    narrow = {field.name for field in contract.inputs if field.dtype == "float32"}
    found: dict[str, Values] = {}
    for feature in profile.features:
        part = feature.name.removeprefix(feature.field).removeprefix(": ")
        if part in UNSAMPLED or (feature.field == ANSWER and part == "width"):
            continue
        if feature.field == CONFIDENCE and contract.output == "labels":
            continue  # a sample has the mean over all labels, the profile that of the least sure one
        values = [_value(row, feature, part) for row in rows]
        if feature.kind == "categorical":
            column = np.full(len(values), None, dtype=object)
            column[:] = [None if value in (None, "") else category_text(value) for value in values]
            found[feature.name] = column
        else:
            numbers = np.array([_as_number(value) for value in values], dtype=np.float64)
            if feature.field in narrow:  # as the served model gets them, and as the profile has them
                numbers = numbers.astype(np.float32).astype(np.float64)
            found[feature.name] = numbers
    return found


def _value(row: Mapping[str, Any], feature: FeatureProfile, part: str) -> Any:
    if feature.field == CONFIDENCE:
        return row.get("confidence")
    if feature.field == ANSWER:
        answer = row.get("answer")
        if part == "labels":
            return len(answer) if isinstance(answer, list) else None
        return answer.get(part) if isinstance(answer, dict) else answer
    value = (row.get("inputs") or {}).get(feature.field)
    if not part or not isinstance(value, dict):
        return None if isinstance(value, dict) else value
    if part in ("brightness", "contrast"):
        number = value.get(part)
        return None if number is None else number / PIXEL_RANGE
    return value.get({"length": "characters", "spread": "std"}.get(part, part))


def _as_number(value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    return math.nan
