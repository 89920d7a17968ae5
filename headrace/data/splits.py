"""Divides rows into training, validation and test. A row's place depends on its content and the seed alone, so a row
never moves when data is appended, and duplicates fall together: nothing leaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, near_miss

if TYPE_CHECKING:
    import pandas as pd

    from headrace.config import Recipe

CHUNK_ROWS = 20_000
"""Rows hashed at once: bounds memory, since every number is widened to 64 bits for hashing."""


@dataclass(frozen=True)
class Splits:
    """Three tables with the same columns; rows keep the order in which they came."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def split(frame: pd.DataFrame, recipe: Recipe) -> Splits:
    """Divides `frame` as `recipe.data.split` says: by content, or by time with the last value as the test set.

    Raises:
        DataError: a part would be empty, or the column of time is gone or has gaps.
    """
    config = recipe.data.split
    place = positions(frame, config.seed)
    if config.time is None:
        is_test = place < config.test
        is_validation = ~is_test & (place < config.test + config.validation)
    else:
        is_test = _is_last(frame, config.time.column)
        is_validation = ~is_test & (place < config.validation)
    parts = Splits(
        train=frame[~is_test & ~is_validation].reset_index(drop=True),
        validation=frame[is_validation].reset_index(drop=True),
        test=frame[is_test].reset_index(drop=True),
    )
    for name, part in (("training", parts.train), ("validation", parts.validation), ("test", parts.test)):
        if part.empty:
            raise DataError(
                f"the {name} set would be empty: {len(frame)} rows divided by {_described(recipe)}",
                where="data.split",
                mend="bring more rows, or change data.split (test, validation, seed, time)",
            )
    return parts


def positions(frame: pd.DataFrame, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each row, `(rows,)`: uniform over contents, fixed for a content and a seed.

    pandas hashes numbers without its key, so the seed is mixed in afterwards, by SplitMix64's finalizer
    (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195).
    """
    hashes = [_content_hashes(frame.iloc[start : start + CHUNK_ROWS]) for start in range(0, len(frame), CHUNK_ROWS)]
    content = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    key = _mixed(np.array([seed % 2**64], np.uint64))
    top_bits = _mixed(content ^ key) >> np.uint64(11)
    return top_bits.astype(np.float64) * 2.0**-53


def _content_hashes(frame: pd.DataFrame) -> NDArray[np.uint64]:
    import pandas as pd

    # A column changes its type when data is appended (whole numbers become floats with the first gap): values are
    # brought to one form first, else every row would move.
    plain = pd.DataFrame({i: _plain(frame.iloc[:, i]) for i in range(frame.shape[1])}, index=frame.index)
    hashes: NDArray[np.uint64] = np.asarray(pd.util.hash_pandas_object(plain, index=False), dtype=np.uint64)
    return hashes


def _plain(values: pd.Series[Any]) -> Any:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0  # -0.0 becomes 0.0
        return np.where(np.isnan(numbers), np.nan, numbers)  # one bit pattern for every NaN
    if pd.api.types.is_datetime64_any_dtype(values):
        return values.to_numpy(dtype="datetime64[us]").view("int64")  # UTC where the column has a zone
    return values.astype("string").astype(object).where(values.notna(), "\0nothing").to_numpy(dtype=object)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _is_last(frame: pd.DataFrame, column: str) -> NDArray[np.bool_]:
    if column not in frame.columns:
        raise DataError(
            f"no column {column!r}; {near_miss(column, map(str, frame.columns[:200]))}",
            where="data.split.time.column",
            mend="correct the recipe, or keep the column (data.columns)",
        )
    if missing := int(frame[column].isna().sum()):
        raise DataError(
            f"{missing} rows have no value in {column!r}, so they have no place in time",
            where="data.split.time.column",
            mend=f"add {column} to data.drop_missing",
        )
    last: NDArray[np.bool_] = (frame[column] == frame[column].max()).to_numpy()
    if last.all():
        raise DataError(
            f"column {column!r} holds one value only, so no earlier rows are left to train on",
            where="data.split.time.column",
            mend="bring rows of at least two times, or split by shares",
        )
    return last


def _described(recipe: Recipe) -> str:
    config = recipe.data.split
    return f"the last {config.time.column}" if config.time else f"test {config.test:g}, validation {config.validation:g}"
