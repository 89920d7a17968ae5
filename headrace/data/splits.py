"""Splits rows into training, validation and test. A row's split depends on its content and the seed alone: a row never
moves when data is appended, and duplicates are in the same split, so nothing leaks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.data.periods import first_of_window
from headrace.errors import DataError, near_miss
from headrace.recipe.periods import parse_period
from headrace.recipe.pictures import IMAGE

if TYPE_CHECKING:
    import pandas as pd

    from headrace.recipe.recipe import Recipe
    from headrace.recipe.splits import PerClass, PredefinedSplit, TimeSplit

CHUNK_ROWS = 20_000
"""Rows hashed at once: bounds memory, since every number is widened to 64 bits for hashing."""
NATIONAL_DATE = r"\s*[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}(?:\s|$)"
"""Dates with the day or the month first."""


@dataclass(frozen=True)
class Splits:
    """Three tables with the same columns; rows keep their order."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    rest: pd.DataFrame
    """Rows in none of the three: those that a split by `per_class` treats as unlabelled, or before `train.window`."""
    test_keys: NDArray[np.uint64] | None = None
    """What the place of each test row depends on, `(rows,)`; see `row_keys`."""
    seen_below: float | None = None
    """With a split by `per_class`: no row with a higher position is in the training or validation set."""


def split(frame: pd.DataFrame, recipe: Recipe) -> Splits:
    """Splits `frame` according to `recipe.data.split`. Columns that are only needed to split rows are dropped.

    Raises:
        DataError: a split would be empty, or a column that it needs is missing or has missing values.
    """
    config, seen_below = recipe.data.split, None
    if config.per_class is not None:
        place = positions(_keys(frame, recipe), config.seed)
        masks = _per_class(frame, place, config.per_class, recipe.data.target)
        seen_below = float(place[masks[0] | masks[1]].max(initial=0.0))
    else:
        first = None if config.time is None else first_test_value([frame], config.time)
        masks = split_masks(frame, recipe, first, first_training_value([frame], recipe, first))
    kept = frame[kept_columns(list(frame.columns), recipe)]
    rest = ~(masks[0] | masks[1] | masks[2])
    train, validation, test, unused = (kept[mask].reset_index(drop=True) for mask in (*masks, rest))
    parts = Splits(train, validation, test, unused, row_keys(frame[masks[2]], recipe), seen_below)
    values: Any = frame[config.predefined.column].unique()[:50] if config.predefined else []
    check_parts({"training": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)}, recipe, values)
    return parts


Masks = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]
"""Training, validation and test rows, `(rows,)` each."""


def split_masks(frame: pd.DataFrame, recipe: Recipe, first: Any = None, oldest: Any = None) -> Masks:
    """Returns which rows of `frame`, a table or a chunk of one, are in which split; not for a split by `per_class`.

    Args:
        first: for a split by time, the first value of its column that marks test rows.
        oldest: with `train.window`, the first value of its column that training and validation rows have.

    Raises:
        DataError: a column that the split needs is missing or has missing values.
    """
    config = recipe.data.split
    place = positions(_keys(frame, recipe), config.seed)
    if config.time is not None:
        is_test = (frame[config.time.column] >= first).to_numpy(dtype=bool)
    elif config.predefined is not None:
        is_test = _is_predefined_test(frame, config.predefined)
    else:
        is_test = place < config.test
    start = 0.0 if config.time or config.predefined else config.test
    is_validation = ~is_test & (place >= start) & (place < start + config.validation)
    is_train = ~is_test & ~is_validation
    if oldest is not None:
        is_recent = (frame[recipe.window_column] >= oldest).to_numpy(dtype=bool)
        is_train, is_validation = is_train & is_recent, is_validation & is_recent
    return is_train, is_validation, is_test


def kept_columns(columns: list[str], recipe: Recipe) -> list[str]:
    """Returns the columns without those that are only needed to split rows (`predefined`, and `group` by value)."""
    config = recipe.data.split
    done = {config.predefined.column} if config.predefined else set()
    if config.group is not None and config.group.match == "value":
        done.add(config.group.column)
    return [column for column in columns if column not in done - set(recipe.data.targets)]


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
        what = "has one value only" if time.test == "last" else f"has no value before those of the test set ({time.test})"
        raise DataError(
            f"column {time.column!r} {what}, so there are no earlier rows to train on",
            where="data.split.time.column",
            hint="add rows with at least two values, or split by shares",
        )
    if time is not None and not rows["test"]:
        raise DataError(
            f"no row has a {time.column} from {time.test} on, so there are no test rows",
            where="data.split.time.test",
            hint="set it to an earlier value, or to a fraction of the rows, for example 0.1",
        )
    for name, count in rows.items():
        if not count:
            raise DataError(
                f"the {name} set would be empty: {sum(rows.values())} rows split by {_described(recipe)}",
                where="data.split",
                hint="add more rows, or change data.split (test, validation, seed, time)"
                + (" or train.window" if recipe.train.window is not None else ""),
            )


def positions(frame: pd.DataFrame, seed: int) -> NDArray[np.float64]:
    """Returns a number in [0, 1) for each row, `(rows,)`: uniform over contents, fixed for a content and a seed.

    pandas hashes numbers without its key, so the seed is mixed in afterwards by SplitMix64's finalizer
    (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195).
    """
    return key_positions(_content_keys(frame), seed)


def key_positions(keys: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """Returns the position of each row, `(rows,)`, from its key."""
    mixed_seed = _mixed(np.array([seed % 2**64], np.uint64))
    top_bits = _mixed(keys ^ mixed_seed) >> np.uint64(11)
    return top_bits.astype(np.float64) * 2.0**-53


def row_keys(frame: pd.DataFrame, recipe: Recipe) -> NDArray[np.uint64]:
    """Returns a hash of what each row's split depends on, `(rows,)`, whatever the seed: its values, its group or its node.
    Rows of a group have the same key.

    Raises:
        DataError: a column that the split needs is missing or has missing values.
    """
    return _content_keys(_keys(frame, recipe))


def key_columns(columns: list[str], recipe: Recipe) -> list[str]:
    """Returns what `row_keys` hashes, of a table with these columns."""
    group, graph = recipe.data.split.group, recipe.data.graph
    if group is not None:
        return [f"{group.column} ({group.match})"]
    if recipe.data.pictures is not None:
        return [IMAGE]
    return [graph.node] if graph is not None else columns


def _content_keys(frame: pd.DataFrame) -> NDArray[np.uint64]:
    hashes = [_content_hashes(frame.iloc[start : start + CHUNK_ROWS]) for start in range(0, len(frame), CHUNK_ROWS)]
    return np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)


def _content_hashes(frame: pd.DataFrame) -> NDArray[np.uint64]:
    import pandas as pd

    # A column changes its type when data is appended (integers become floats with the first missing value). Values are
    # converted to one form first, or every row would move.
    plain = pd.DataFrame({i: _plain(frame.iloc[:, i]) for i in range(frame.shape[1])}, index=frame.index)
    hashes: NDArray[np.uint64] = np.asarray(pd.util.hash_pandas_object(plain, index=False), dtype=np.uint64)
    return hashes


def _plain(values: pd.Series[Any]) -> Any:
    import pandas as pd

    if pd.api.types.is_bool_dtype(values) or (values.dtype == object and pd.api.types.infer_dtype(values) == "boolean"):
        texts = values.map({True: "true", False: "false"}, na_action="ignore").astype(object)
        return texts.where(values.notna(), "\0nothing").to_numpy(dtype=object)
    if pd.api.types.is_integer_dtype(values) and (large := _large_integers(values)) is not None:
        return large
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0  # -0.0 becomes 0.0
        return np.where(np.isnan(numbers), np.nan, numbers)  # one bit pattern for every NaN
    if pd.api.types.is_datetime64_any_dtype(values):
        return values.to_numpy(dtype="datetime64[us]").view("int64")  # UTC where the column has a zone
    if len(values) and isinstance(values.iloc[0], bytes):
        return np.array([hashlib.sha256(value).hexdigest() for value in values], dtype=object)
    return values.astype("string").astype(object).where(values.notna(), "\0nothing").to_numpy(dtype=object)


def _large_integers(values: pd.Series[Any]) -> NDArray[np.float64] | None:
    """Returns whole numbers of which some exceed 2^53 as floats that differ where the numbers do; None if none exceeds it."""
    is_unsigned = str(values.dtype).lower().startswith("u")
    whole = values.fillna(0).to_numpy(dtype=np.uint64 if is_unsigned else np.int64)
    is_large = whole > np.array(2**53, whole.dtype)
    is_large = is_large if is_unsigned else is_large | (whole < -(2**53))
    if not is_large.any():
        return None
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0
    return np.where(is_large, whole.view(np.float64), numbers)  # the bits of the integer: floats would round it


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
    if recipe.data.pictures is not None:  # the same picture under another name is in the same split
        return frame[[IMAGE]]
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


def first_test_value(frames: Iterable[pd.DataFrame], config: TimeSplit) -> Any:
    """Returns the first value of the column of a split by time that marks test rows: they have this value or a later one.

    Args:
        frames: the whole table, or chunks of it with the column.

    Raises:
        DataError: the column is missing, has missing values, or values whose order is not that of time.
    """
    import pandas as pd

    columns = []
    for frame in frames:
        _check_column(frame, config.column, "data.split.time.column", "place in time")
        columns.append(frame[config.column])
    values = columns[0] if len(columns) == 1 else pd.concat(columns, ignore_index=True)
    _check_order(values, config)
    if config.share is not None:
        ordered = values.sort_values()
        return ordered.iloc[len(ordered) - math.ceil(config.share * len(ordered))]
    if config.period is not None:
        return first_of_window(values, config.period, "data.split.time.test")
    return values.max() if config.test == "last" else _as_value(config.test, values)


def first_training_value(frames: Iterable[pd.DataFrame], recipe: Recipe, first_test: Any = None) -> Any:
    """Returns the first value in `train.window`; training and validation rows have this value or a later one. The window ends
    with the latest row, or with the latest before the test rows of a split by time. None for a recipe without a window.

    Args:
        frames: the whole table, or chunks of it with the column.
        first_test: what `first_test_value` returns, for a split by time.

    Raises:
        DataError: the column is missing, has missing values, or holds no times where the window is a length of time.
    """
    import pandas as pd

    window, column = recipe.train.window, recipe.window_column
    if window is None or column is None:
        return None
    columns = []
    for frame in frames:
        _check_column(frame, column, "train.window", "place in time")
        columns.append(frame[column].drop_duplicates())
    values = pd.concat(columns, ignore_index=True)
    if recipe.data.split.time is not None:
        values = values[values < first_test]
    if not len(values):
        return None  # there are no training rows at all, which has an error of its own
    return first_of_window(values, parse_period(window) or int(window), "train.window")


def _check_order(values: pd.Series[Any], config: TimeSplit) -> None:
    """
    Raises:
        DataError: the values are texts such as 31.12.2024, which a text's order would sort by the day of the month.
    """
    import pandas as pd

    if not pd.api.types.is_string_dtype(values):
        return
    national = values[values.str.match(NATIONAL_DATE)]
    if len(national):
        texts = f"{len(national):,} texts such as {national.iloc[0]!r}"
        rule = f'{{{config.column}: {{format: "%d/%m/%Y", features: []}}}}'
        raise DataError(
            f"column {config.column!r} has {texts}, whose order is not that of time",
            where="data.split.time.column",
            hint=f"read them as times: data.times: {rule}, in the format they have",
        )


def _as_value(test: Any, values: pd.Series[Any]) -> Any:
    """Returns the value of `split.time.test` in the type of the column.

    Raises:
        DataError: the column holds another type.
    """
    import pandas as pd

    try:
        if pd.api.types.is_datetime64_any_dtype(values):
            moment = pd.Timestamp(str(test))
            zone = getattr(values.dtype, "tz", None)
            return moment.tz_localize(zone) if zone is not None and moment.tzinfo is None else moment
        return float(test) if pd.api.types.is_numeric_dtype(values) else str(test)
    except (ValueError, TypeError):
        raise DataError(
            f"{test!r} cannot be compared with the values of the column, for example {values.iloc[0]!r}",
            where="data.split.time.test",
            hint="write last, a fraction such as 0.1, or a value as the column has it",
        ) from None


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
    window = f", train.window {recipe.train.window}" if recipe.train.window is not None else ""
    if config.time or config.predefined:
        tests = (
            f"the {config.time.column} ({config.time.test})"
            if config.time
            else f"the given {config.predefined.column}"
            if config.predefined
            else ""
        )
        return f"{tests}, validation {config.validation:g}{window}"
    return f"test {config.test:g}, validation {config.validation:g}{window}"
