"""The suite of one recipe: its own expectations as Great Expectations' objects, those always added, and proposals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.recipe.data import PART
from headrace.errors import RecipeError, near_miss

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations.expectation import Expectation as GXExpectation

    from headrace.recipe.recipe import Recipe

COLUMN_FIELDS = ("column", "column_A", "column_B", "column_list")
FEW_VALUES = 20
"""A text column, or a target, with at most so many distinct values is proposed as a set."""
MARGIN = 0.1
"""Proposed ranges are wider than what was seen by this share of the range, on both sides."""
COLUMN_LIMIT = 60
"""Beyond so many columns (pixels, sensors) only the target gets proposals of its own."""


def native(recipe: Recipe, frame: pd.DataFrame) -> list[GXExpectation]:
    """The recipe's expectations as Great Expectations' own objects.

    Raises:
        RecipeError: with the field and the near miss.
    """
    where = f"recipes/{recipe.name}.yaml"
    columns = [*map(str, frame.columns), *(recipe.data.landed or [])]
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
                f"{field}.{name}: {kind} takes no such argument; {near_miss(name, known)}", where=where, hint=f"edit {where}"
            )
    try:
        built: GXExpectation = cls(**arguments)
    except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
        mistakes = error.errors() if hasattr(error, "errors") else []
        said = "; ".join(f"{'.'.join(map(str, m['loc']))}: {m['msg']}" for m in mistakes) or str(error)
        raise RecipeError(f"{field}: {kind}: {said}", where=where, hint=f"edit {where}") from None
    return built


def implicit_expectations(frame: pd.DataFrame, recipe: Recipe, known_labels: Sequence[Any] | None) -> list[GXExpectation]:
    """What holds for every recipe: its columns, a target in each row, at least one row, and no label never seen."""
    target = recipe.data.target
    always: list[tuple[str, dict[str, Any]]] = [
        ("expect_table_row_count_to_be_between", {"min_value": 1}),
        ("expect_table_columns_to_match_set", {"column_set": list(recipe.data.landed or [target]), "exact_match": False}),
    ]
    if target in frame.columns:
        always.append(("expect_column_values_to_not_be_null", {"column": target}))
    if recipe.data.parts:
        always.append(("expect_column_values_to_be_in_set", {"column": PART, "value_set": recipe.data.parts}))
        always.append(("expect_column_values_to_not_be_null", {"column": PART}))
    named = any(e.type == "expect_column_values_to_be_in_set" and e.arguments.get("column") == target for e in recipe.expect)
    if known_labels is not None and not named and target in frame.columns:
        labels = [plain(label) for label in known_labels]
        always.append(("expect_column_values_to_be_in_set", {"column": target, "value_set": labels}))
    return [_built(kind, arguments, "implicit", "headrace") for kind, arguments in always]


def propose_suite(frame: pd.DataFrame, target: str) -> list[dict[str, Any]]:
    """Expectations that `frame` meets and a damaged batch would not, ready to stand under `expect`.

    Sets for few texts, ranges with a margin for numbers, no gaps where there are none.
    """
    found: list[dict[str, Any]] = [{"type": "expect_table_columns_to_match_set", "column_set": [str(c) for c in frame.columns]}]
    wide = frame.shape[1] > COLUMN_LIMIT
    if wide:
        found = [{"type": "expect_table_column_count_to_equal", "value": frame.shape[1]}]
    for column in [target] if wide else [str(c) for c in frame.columns]:
        found += _proposals(frame[column], column, is_target=column == target)
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
    numeric = pd.api.types.is_numeric_dtype(values)
    whole = numeric and bool((present % 1 == 0).all())
    is_label = is_target and len(distinct) <= FEW_VALUES and (whole or not numeric)
    if is_label or (not numeric and len(distinct) <= min(FEW_VALUES, max(2, len(present) // 10))):
        known = sorted(plain(int(v)) if whole else plain(v) for v in distinct)
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
    """Bounds a little wider than seen; never below zero for what is never negative, and whole for whole numbers."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    margin = MARGIN * ((high - low) or abs(high) or 1.0)
    floor = max(low - margin, 0.0) if low >= 0 else low - margin
    if whole:
        return math.floor(floor), math.ceil(high + margin)
    return float(f"{floor:.6g}"), float(f"{high + margin:.6g}")


def identity(kind: str, arguments: dict[str, Any]) -> str:
    """Equal for two expectations that say the same."""
    return repr((kind, sorted((k, repr(plain(v))) for k, v in arguments.items() if k != "batch_id" and v is not None)))


def described(expectation: GXExpectation) -> str:
    """Type and column, for people."""
    column = expectation.configuration.kwargs.get("column")
    return expectation.expectation_type + (f" ({column})" if column else "")


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
