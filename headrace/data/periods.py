"""Rows by their place in time: the latest period of a column, and the window of rows that are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.errors import DataError
from headrace.recipe.periods import Period

if TYPE_CHECKING:
    import pandas as pd


def first_of_window(values: pd.Series[Any], window: int | Period, where: str) -> Any:
    """Returns the first value in the window that ends with the latest value.

    Args:
        values: a column without missing values, at least one.
        window: a number of distinct values, or a length of time. A month that ends with 30 June begins after 30 May.
        where: the field of the recipe, for errors.

    Raises:
        DataError: a length of time for a column that holds no times.
    """
    distinct = values.drop_duplicates().sort_values()
    if isinstance(window, int):
        return distinct.iloc[-min(window, len(distinct))]
    times = _as_times(distinct, window, where)
    before = _before(times.iloc[-1], window)
    return distinct.iloc[0] if before is None else distinct[times > before].iloc[0]


def _as_times(values: pd.Series[Any], window: Period, where: str) -> pd.Series[Any]:
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(values):
        return values
    try:
        if pd.api.types.is_numeric_dtype(values):
            raise ValueError("numbers")
        return pd.to_datetime(values.astype(str), format="ISO8601", utc=True)
    except (ValueError, TypeError, OverflowError):
        raise DataError(
            f"{window} cannot be measured in column {values.name!r}, which holds no times, for example {values.iloc[-1]}",
            where=where,
            hint=_hint(where, str(values.name)),
        ) from None


def _hint(where: str, column: str) -> str:
    if where == "train.window":
        return "write a number of values, for example 3; or have the column read as times (data.times)"
    return f"write last or a fraction such as 0.1; or have the column read as times: data.times: {{{column}: {{features: []}}}}"


def _before(moment: Any, period: Period) -> Any:
    """The moment a period earlier; None for one before the first moment that can be stored."""
    import pandas as pd

    try:
        return moment - pd.DateOffset(**{period.unit: period.count})  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        return None
