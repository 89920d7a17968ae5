"""Splits rows into training, validation and test. A row's split depends on its content and the seed alone: a row never
moves when data is appended, and duplicates are in the same split, so nothing leaks."""

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
    from headrace.recipe.splits import PerClass, PredefinedSplit

CHUNK_ROWS = 20_000
"""Rows hashed at once: bounds memory, since every number is widened to 64 bits for hashing."""


@dataclass(frozen=True)
class Splits:
    """Three tables with the same columns; rows keep their order."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    rest: pd.DataFrame
    """Rows in none of the three: those that a split by `per_class` treats as unlabelled; otherwise empty."""


def split(frame: pd.DataFrame, recipe: Recipe) -> Splits:
    """Splits `frame` according to `recipe.data.split`. Columns that are only needed to split rows are dropped.

    Raises:
        DataError: a split would be empty, or a column that it needs is missing or has missing values.
    """
    config = recipe.data.split
    if config.per_class is not None:
        place = positions(_keys(frame, recipe), config.seed)
        masks = _per_class(frame, place, config.per_class, recipe.data.target)
    else:
        masks = split_masks(frame, recipe, None if config.time is None else last_value(frame, config.time.column))
    kept = frame[kept_columns(list(frame.columns), recipe)]
    rest = ~(masks[0] | masks[1] | masks[2])
    parts = Splits(*(kept[mask].reset_index(drop=True) for mask in (*masks, rest)))
    values: Any = frame[config.predefined.column].unique()[:50] if config.predefined else []
    check_parts({"training": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}, recipe, values)
    return parts


Masks = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]
"""Training, validation and test rows, `(rows,)` each."""


def split_masks(frame: pd.DataFrame, recipe: Recipe, last: Any = None) -> Masks:
    """Returns which rows of `frame`, a table or a chunk of one, are in which split; not for a split by `per_class`.

    Args:
        last: for a split by time, the last value of its column in the whole table.

    Raises:
        DataError: a column that the split needs is missing or has missing values.
    """
    config = recipe.data.split
    place = positions(_keys(frame, recipe), config.seed)
    if config.time is not None:
        is_test = (frame[config.time.column] == last).to_numpy()
    elif config.predefined is not None:
        is_test = _is_predefined_test(frame, config.predefined)
    else:
        is_test = place < config.test
    first = 0.0 if config.time or config.predefined else config.test
    is_validation = ~is_test & (place >= first) & (place < first + config.validation)
    return ~is_test & ~is_validation, is_validation, is_test


def kept_columns(columns: list[str], recipe: Recipe) -> list[str]:
    """Returns the columns without those that are only needed to split rows (`predefined`, and `group` by value)."""
    config = recipe.data.split
    done = {config.predefined.column} if config.predefined else set()
    if config.group is not None and config.group.match == "value":
        done.add(config.group.column)
    return [column for column in columns if column not in done - {recipe.data.target}]


def check_parts(rows: dict[str, int], recipe: Recipe, values: Iterable[Any] = ()) -> None:
    """Checks that no split is empty.

    Args:
        rows: number of rows of `training`, `validation` and `test`.
        values: some values of the column of a predefined split.

    Raises:
        DataError: a split has no row.
    """
    predefined, time = recipe.data.split.predefined, recipe.data.split.time
    if predefined is not None and not rows["test"]:
        raise DataError(
            f"no row has {predefined.column} {predefined.test!r}; {near_miss(str(predefined.test), map(str, values))}",
            where="data.split.predefined.test",
            hint="set it to the value that marks the test rows",
        )
    if time is not None and not rows["training"] + rows["validation"]:
        raise DataError(
            f"column {time.column!r} has one value only, so there are no earlier rows to train on",
            where="data.split.time.column",
            hint="add rows with at least two values, or split by shares",
        )
    for name, count in rows.items():
        if not count:
            raise DataError(
                f"the {name} set would be empty: {sum(rows.values())} rows split by {_described(recipe)}",
                where="data.split",
                hint="add more rows, or change data.split (test, validation, seed, time)",
            )


def positions(frame: pd.DataFrame, seed: int) -> NDArray[np.float64]:
    """Returns a number in [0, 1) for each row, `(rows,)`: uniform over contents, fixed for a content and a seed.

    pandas hashes numbers without its key, so the seed is mixed in afterwards by SplitMix64's finalizer
    (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195).
    """
    hashes = [_content_hashes(frame.iloc[start : start + CHUNK_ROWS]) for start in range(0, len(frame), CHUNK_ROWS)]
    content = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    key = _mixed(np.array([seed % 2**64], np.uint64))
    top_bits = _mixed(content ^ key) >> np.uint64(11)
    return top_bits.astype(np.float64) * 2.0**-53


def _content_hashes(frame: pd.DataFrame) -> NDArray[np.uint64]:
    import pandas as pd

    # A column changes its type when data is appended (integers become floats with the first missing value). Values are
    # converted to one form first, or every row would move.
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
    """Returns what a row's split depends on: all its values, or its group or node."""
    group, graph = recipe.data.split.group, recipe.data.graph
    if group is not None:
        _check_column(frame, group.column, "data.split.group.column", "group")
        key = frame[[group.column]]
        return key if group.match == "value" else key.assign(**{group.column: same_words(key[group.column])})
    return frame[[graph.node]] if graph is not None else frame  # edges are added later, and a node must not move


def same_words(texts: pd.Series[Any]) -> pd.Series[Any]:
    """Returns the words of each text: in lower case, without links, @names, digits, punctuation and the RT of a retweet. A
    text without words is returned unchanged."""
    words = texts.astype("string").str.lower()
    for nothing in (r"https?://\S+|@\w+", r"[\W\d_]+", r"\brt\b"):
        words = words.str.replace(nothing, " ", regex=True)
    words = words.str.split().str.join(" ")
    return words.where(words != "", texts.astype("string"))


def _per_class(
    frame: pd.DataFrame, place: NDArray[np.float64], config: PerClass, target: str
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Takes rows in the order of their positions: the first of each class for training, the next for validation and test.

    Raises:
        DataError: a class has too few rows, or too few are left for validation and test.
    """
    order = np.argsort(place, kind="stable")
    labels = frame[target]
    rank = labels.iloc[order].groupby(labels.iloc[order]).cumcount().to_numpy()
    is_train, is_validation, is_test = (np.zeros(len(frame), dtype=bool) for _ in range(3))
    is_train[order[rank < config.train]] = True
    for label, count in labels.value_counts().items():
        if count < config.train:
            raise DataError(
                f"class {label!r} has {count} rows, and training needs {config.train} of each",
                where="data.split.per_class.train",
                hint=f"lower it to {count} or less, or add rows of that class",
            )
    further = order[rank >= config.train]
    if len(further) < config.validation + config.test:
        raise DataError(
            f"{len(further)} rows are left, and validation needs {config.validation} and test {config.test}",
            where="data.split.per_class",
            hint="lower validation and test, or add more rows",
        )
    is_validation[further[: config.validation]] = True
    is_test[further[config.validation : config.validation + config.test]] = True
    return is_train, is_validation, is_test


def _is_predefined_test(frame: pd.DataFrame, split: PredefinedSplit) -> NDArray[np.bool_]:
    _check_column(frame, split.column, "data.split.predefined.column", "split")
    is_test: NDArray[np.bool_] = (frame[split.column].astype(str) == str(split.test)).to_numpy()
    return is_test


def last_value(frame: pd.DataFrame, column: str) -> Any:
    """Returns the last value of the column of a split by time, which marks the test rows.

    Raises:
        DataError: the column is missing or has missing values.
    """
    _check_column(frame, column, "data.split.time.column", "place in time")
    return frame[column].max()


def _check_column(frame: pd.DataFrame, column: str, field: str, lacks: str) -> None:
    """
    Raises:
        DataError: the column is missing or has missing values.
    """
    if column not in frame.columns:
        raise DataError(
            f"no column {column!r}; {near_miss(column, map(str, frame.columns[:200]))}",
            where=field,
            hint="correct the recipe, or add the column to data.columns",
        )
    if missing := int(frame[column].isna().sum()):
        raise DataError(
            f"{missing} rows have no value in {column!r}, so they have no {lacks}",
            where=field,
            hint=f"add {column} to data.drop_missing",
        )


def _described(recipe: Recipe) -> str:
    config = recipe.data.split
    if config.time or config.predefined:
        tests = (
            f"the last {config.time.column}"
            if config.time
            else f"the given {config.predefined.column}"
            if config.predefined
            else ""
        )
        return f"{tests}, validation {config.validation:g}"
    return f"test {config.test:g}, validation {config.validation:g}"
