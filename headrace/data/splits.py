"""Divides rows into training, validation and test. A row's place depends on its content and the seed alone, so a row
never moves when data is appended, and duplicates fall together: nothing leaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, near_miss

if TYPE_CHECKING:
    import pandas as pd

    from headrace.recipe.recipe import Recipe
    from headrace.recipe.splits import GivenSplit, PerClass

CHUNK_ROWS = 20_000
"""Rows hashed at once: bounds memory, since every number is widened to 64 bits for hashing."""


@dataclass(frozen=True)
class Splits:
    """Three tables with the same columns; rows keep the order in which they came."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    rest: pd.DataFrame
    """Rows of none of the three: those that a split by `per_class` counts as unlabelled; else empty."""


def split(frame: pd.DataFrame, recipe: Recipe) -> Splits:
    """Divides `frame` as `recipe.data.split` says. The columns of `given` and of a group by value have done their work
    then, and are left out.

    Raises:
        DataError: a part would be empty, or a column that divides rows is gone or has gaps.
    """
    config = recipe.data.split
    if config.per_class is not None:
        place = positions(_keys(frame, recipe), config.seed)
        masks = _per_class(frame, place, config.per_class, recipe.data.target)
    else:
        masks = divide(frame, recipe, None if config.time is None else last_value(frame, config.time.column))
    kept = frame[kept_columns(list(frame.columns), recipe)]
    rest = ~(masks[0] | masks[1] | masks[2])
    parts = Splits(*(kept[mask].reset_index(drop=True) for mask in (*masks, rest)))
    values: Any = frame[config.given.column].unique()[:50] if config.given else []
    check_parts({"training": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}, recipe, values)
    return parts


Masks = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]
"""Of training, validation and test rows, `(rows,)` each."""


def divide(frame: pd.DataFrame, recipe: Recipe, last: Any = None) -> Masks:
    """Which rows of `frame`, a table or a piece of one, are of which part; not for a split by `per_class`.

    Args:
        last: of a split by time, the last value of its column in the whole table.

    Raises:
        DataError: a column that divides rows is gone or has gaps.
    """
    config = recipe.data.split
    place = positions(_keys(frame, recipe), config.seed)
    if config.time is not None:
        is_test = (frame[config.time.column] == last).to_numpy()
    elif config.given is not None:
        is_test = _is_given(frame, config.given)
    else:
        is_test = place < config.test
    first = 0.0 if config.time or config.given else config.test
    is_validation = ~is_test & (place >= first) & (place < first + config.validation)
    return ~is_test & ~is_validation, is_validation, is_test


def kept_columns(columns: list[str], recipe: Recipe) -> list[str]:
    """Columns that are left after the division: those of `given` and of a group by value have done their work."""
    config = recipe.data.split
    done = {config.given.column} if config.given else set()
    if config.group is not None and config.group.alike == "value":
        done.add(config.group.column)
    return [column for column in columns if column not in done - {recipe.data.target}]


def check_parts(rows: dict[str, int], recipe: Recipe, values: Iterable[Any] = ()) -> None:
    """
    Args:
        rows: of `training`, `validation` and `test`.
        values: some that the column of a given split holds.

    Raises:
        DataError: a part has no row.
    """
    given, time = recipe.data.split.given, recipe.data.split.time
    if given is not None and not rows["test"]:
        raise DataError(
            f"no row has {given.column} {given.test!r}; {near_miss(str(given.test), map(str, values))}",
            where="data.split.given.test",
            hint="name a value that the test rows have",
        )
    if time is not None and not rows["training"] + rows["validation"]:
        raise DataError(
            f"column {time.column!r} holds one value only, so no earlier rows are left to train on",
            where="data.split.time.column",
            hint="bring rows of at least two times, or split by shares",
        )
    for name, count in rows.items():
        if not count:
            raise DataError(
                f"the {name} set would be empty: {sum(rows.values())} rows divided by {_described(recipe)}",
                where="data.split",
                hint="bring more rows, or change data.split (test, validation, seed, time)",
            )


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


def _keys(frame: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """What a row's place depends on: all that it holds, or the name of its group or node."""
    group, graph = recipe.data.split.group, recipe.data.graph
    if group is not None:
        _present(frame, group.column, "data.split.group.column", "group")
        key = frame[[group.column]]
        return key if group.alike == "value" else key.assign(**{group.column: same_words(key[group.column])})
    return frame[[graph.node]] if graph is not None else frame  # edges grow; a node stays where it is


def same_words(texts: pd.Series[Any]) -> pd.Series[Any]:
    """Each text's words alone: lower case, without links, @names, digits, signs, and the RT that passes a tweet on. A text
    of no words stays as it is."""
    words = texts.astype("string").str.lower()
    for nothing in (r"https?://\S+|@\w+", r"[\W\d_]+", r"\brt\b"):
        words = words.str.replace(nothing, " ", regex=True)
    words = words.str.split().str.join(" ")
    return words.where(words != "", texts.astype("string"))


def _per_class(
    frame: pd.DataFrame, place: NDArray[np.float64], config: PerClass, target: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows in the order of their places: the first of each class train, the next validate, the next test.

    Raises:
        DataError: a class has too few rows, or nothing would be left to validate and test with.
    """
    order = np.argsort(place, kind="stable")
    labels = frame[target]
    rank = labels.iloc[order].groupby(labels.iloc[order]).cumcount().to_numpy()
    is_train, is_validation, is_test = (np.zeros(len(frame), dtype=bool) for _ in range(3))
    is_train[order[rank < config.train]] = True
    for label, count in labels.value_counts().items():
        if count < config.train:
            raise DataError(
                f"class {label!r} has {count} rows, and {config.train} of each are to train",
                where="data.split.per_class.train",
                hint=f"lower it to {count} or less, or bring more rows of that class",
            )
    further = order[rank >= config.train]
    if len(further) < config.validation + config.test:
        raise DataError(
            f"{len(further)} rows are left for {config.validation} of validation and {config.test} of test",
            where="data.split.per_class",
            hint="lower validation and test, or bring more rows",
        )
    is_validation[further[: config.validation]] = True
    is_test[further[config.validation : config.validation + config.test]] = True
    return is_train, is_validation, is_test


def _is_given(frame: pd.DataFrame, given: GivenSplit) -> NDArray[np.bool_]:
    _present(frame, given.column, "data.split.given.column", "part")
    is_test: NDArray[np.bool_] = (frame[given.column].astype(str) == str(given.test)).to_numpy()
    return is_test


def last_value(frame: pd.DataFrame, column: str) -> Any:
    """Of a split by time, the value that the test rows have.

    Raises:
        DataError: the column is gone or has gaps.
    """
    _present(frame, column, "data.split.time.column", "place in time")
    return frame[column].max()


def _present(frame: pd.DataFrame, column: str, field: str, lacks: str) -> None:
    """
    Raises:
        DataError: the column is gone or has gaps.
    """
    if column not in frame.columns:
        raise DataError(
            f"no column {column!r}; {near_miss(column, map(str, frame.columns[:200]))}",
            where=field,
            hint="correct the recipe, or keep the column (data.columns)",
        )
    if missing := int(frame[column].isna().sum()):
        raise DataError(
            f"{missing} rows have no value in {column!r}, so they have no {lacks}",
            where=field,
            hint=f"add {column} to data.drop_missing",
        )


def _described(recipe: Recipe) -> str:
    config = recipe.data.split
    if config.time or config.given:
        tests = f"the last {config.time.column}" if config.time else f"the given {config.given.column}" if config.given else ""
        return f"{tests}, validation {config.validation:g}"
    return f"test {config.test:g}, validation {config.validation:g}"
