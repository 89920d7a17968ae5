"""The expectation suite of a recipe: its own expectations, those that Headrace always adds, and proposals for new recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.errors import RecipeError, near_miss
from headrace.recipe.data import PART

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations.expectation import Expectation as GXExpectation

    from headrace.recipe.recipe import Recipe

PIXELS = "expect_pixels_to_be_between"
"""The expectation of `headrace.data.validation.pixels`."""
COLUMN_FIELDS = ("column", "column_A", "column_B", "column_list")
FEW_VALUES = 20
"""A text column, or a target, with at most this many distinct values is proposed as a set."""
TRUTHS: list[Any] = [0, 1, True, False, "true", "false", "True", "False", "TRUE", "FALSE", "0", "1"]
"""What a column that says whether a row has a label may hold."""
MARGIN = 0.1
"""Proposed ranges are wider than the observed one by this share of it, on both sides."""
COLUMN_LIMIT = 60
"""With more columns (pixels, sensors) only the target gets proposals."""


def recipe_expectations(recipe: Recipe, frame: pd.DataFrame) -> list[GXExpectation]:
    """Returns the recipe's expectations as objects of Great Expectations.

    Raises:
        RecipeError: an unknown column or a wrong argument; the message names the field and a close match.
    """
    where = f"recipes/{recipe.name}.yaml"
    columns = [*map(str, frame.columns), *(recipe.data.stored_columns or [])]
    found = []
    for i, expectation in enumerate(recipe.expect):
        for field in COLUMN_FIELDS:
            value = expectation.arguments.get(field, [])
            for name in value if isinstance(value, list) else [value]:
                if name not in columns:
                    raise RecipeError(
                        f"expect.{i}.{field}: no column {name!r}; {near_miss(str(name), columns)}",
                        where=where,
                        hint=f"edit {where}",
                    )
        found.append(_built(expectation.type, expectation.arguments, f"expect.{i}", where))
    return found


def _built(kind: str, arguments: dict[str, Any], field: str, where: str) -> GXExpectation:
    from great_expectations.expectations.registry import get_expectation_impl

    cls: Any = get_expectation_impl(kind)
    known = set(cls.__fields__) - {"id", "meta", "notes", "rendered_content", "result_format", "catch_exceptions", "batch_id"}
    for name in arguments:
        if name not in known | {"meta", "notes"}:
            raise RecipeError(
                f"{field}.{name}: {kind} has no such argument; {near_miss(name, known)}", where=where, hint=f"edit {where}"
            )
    try:
        built: GXExpectation = cls(**arguments)
    except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
        mistakes = error.errors() if hasattr(error, "errors") else []
        reason = "; ".join(f"{'.'.join(map(str, m['loc']))}: {m['msg']}" for m in mistakes) or str(error)
        raise RecipeError(f"{field}: {kind}: {reason}", where=where, hint=f"edit {where}") from None
    return built


def implicit_expectations(frame: pd.DataFrame, recipe: Recipe, known_labels: Sequence[Any] | None) -> list[GXExpectation]:
    """Returns what is expected of every recipe: its columns, a target in each row, at least one row, no new label, and of
    images pixels from 0 to 255."""
    data, target = recipe.data, recipe.data.target
    columns = [] if data.label_separator else [name for name in data.targets if name in frame.columns]  # no label: empty text
    always: list[tuple[str, dict[str, Any]]] = [
        ("expect_table_row_count_to_be_between", {"min_value": 1}),
        (
            "expect_table_columns_to_match_set",
            {"column_set": list(recipe.data.stored_columns or data.targets), "exact_match": False},
        ),
    ]
    always += [("expect_column_values_to_not_be_null", {"column": name}) for name in columns]
    if recipe.task_type.is_multilabel and data.target_columns:
        always += [("expect_column_values_to_be_in_set", {"column": name, "value_set": TRUTHS}) for name in columns]
    if recipe.data.parts:
        always.append(("expect_column_values_to_be_in_set", {"column": PART, "value_set": recipe.data.parts}))
        always.append(("expect_column_values_to_not_be_null", {"column": PART}))
    named = any(e.type == "expect_column_values_to_be_in_set" and e.arguments.get("column") == target for e in recipe.expect)
    if known_labels is not None and not named and target in frame.columns:
        labels = [to_json_value(label) for label in known_labels]
        always.append(("expect_column_values_to_be_in_set", {"column": target, "value_set": labels}))
    built = [_built(kind, arguments, "implicit", "headrace") for kind, arguments in always]
    if recipe.data.pixels is not None:
        from headrace.data.validation.pixels import ExpectPixelsToBeBetween

        names = [str(name) for name in frame.columns]
        others = sorted(set(names) - set(recipe.data.features(names)))
        built.append(ExpectPixelsToBeBetween(other_columns=others))
    return built


def propose_suite(frame: pd.DataFrame, targets: Sequence[str]) -> list[dict[str, Any]]:
    """Proposes expectations for `expect` that `frame` passes and a damaged batch would fail: sets for columns of few texts,
    ranges with a margin for numbers, no gaps where there are none."""
    found: list[dict[str, Any]] = [{"type": "expect_table_columns_to_match_set", "column_set": [str(c) for c in frame.columns]}]
    wide = frame.shape[1] > COLUMN_LIMIT
    if wide:
        found = [{"type": "expect_table_column_count_to_equal", "value": frame.shape[1]}]
    for column in targets if wide else [str(c) for c in frame.columns]:
        found += _proposals(frame[column], column, is_target=column in targets)
    return found


def _proposals(values: pd.Series[Any], column: str, is_target: bool) -> list[dict[str, Any]]:
    import pandas as pd

    present = values.dropna()
    found: list[dict[str, Any]] = []
    if len(present) == len(values) and not is_target:  # the target's is implicit
        found.append({"type": "expect_column_values_to_not_be_null", "column": column})
    if present.empty:
        return found
    distinct = present.unique()
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    whole = numeric and bool((present % 1 == 0).all())
    is_label = is_target and len(distinct) <= FEW_VALUES and (whole or not numeric)
    if is_label or (not numeric and len(distinct) <= min(FEW_VALUES, max(2, len(present) // 10))):
        known = sorted(to_json_value(int(v)) if whole else to_json_value(v) for v in distinct)
        found.append({"type": "expect_column_values_to_be_in_set", "column": column, "value_set": known})
    elif numeric and (bounds := _with_margin(float(present.min()), float(present.max()), whole)):
        found.append(
            {"type": "expect_column_values_to_be_between", "column": column, "min_value": bounds[0], "max_value": bounds[1]}
        )
    elif not numeric and not pd.api.types.is_datetime64_any_dtype(values):
        longest = int(present.astype(str).str.len().max())
        found.append(
            {
                "type": "expect_column_value_lengths_to_be_between",
                "column": column,
                "min_value": 1 if (present != "").all() else 0,
                "max_value": 2 * longest,
            }
        )
    return found


def _with_margin(low: float, high: float, whole: bool) -> tuple[float, float] | None:
    """Returns bounds a little wider than observed: not below zero for values that are never negative, whole for integers."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    margin = MARGIN * ((high - low) or abs(high) or 1.0)
    floor = max(low - margin, 0.0) if low >= 0 else low - margin
    if whole:
        return math.floor(floor), math.ceil(high + margin)
    return float(f"{floor:.6g}"), float(f"{high + margin:.6g}")


def expectation_key(kind: str, arguments: dict[str, Any]) -> str:
    """Returns a key that is equal for two expectations with the same type and arguments."""
    return repr((kind, sorted((k, repr(to_json_value(v))) for k, v in arguments.items() if k != "batch_id" and v is not None)))


def describe(expectation: GXExpectation) -> str:
    """Returns the type and the column, for messages."""
    column = expectation.configuration.kwargs.get("column")
    return expectation.expectation_type + (f" ({column})" if column else "")


def to_json_value(value: Any) -> Any:
    """Returns `value` as JSON can represent it."""
    if isinstance(value, dict):
        return {str(k): to_json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json_value(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
