"""Learns the schema of a table, column by column, from rows that arrive in chunks or all at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.data.moments import Moments
from headrace.errors import DataError
from headrace.models.schema import Categorical, Numeric, Schema, Shape
from headrace.task_types.base import as_label, distinct_labels, sorted_labels

if TYPE_CHECKING:
    import pandas as pd

    from headrace.recipe.recipe import Recipe

COARSEST = 1e-4
"""Standard deviations; if float32 rounds a column's values by more, they are scaled in float64."""
Floats = NDArray[np.float64]


class NumberLearner:
    """Learns a numeric column: its moments, whether values are missing, and whether float32 can tell its values apart."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._moments = Moments()
        self._has_missing = False
        self._are_booleans = True
        self._largest = 0.0

    def add(self, frame: pd.DataFrame) -> None:
        """Adds further training rows; raises `DataError` as `finite` does."""
        numbers = finite(frame, self.name)
        missing = np.isnan(numbers)
        self._has_missing |= bool(missing.any())
        if missing.all():
            return
        centre = numbers[~missing][0]
        # Relative to a value of the column: sums of large numbers would lose the digits in which they differ.
        apart = numbers - centre
        self._moments.add(int((~missing).sum()), float(centre + np.nanmean(apart)), float(np.nanvar(apart)))
        self._are_booleans = self._are_booleans and are_booleans(frame[self.name])
        self._largest = max(self._largest, float(np.nanmax(np.abs(numbers))))

    def learned(self) -> Numeric | None:
        """Returns the column, or None if no row has a value."""
        if not self._moments.rows:
            return None
        mean, std = self._moments.mean, math.sqrt(self._moments.variance)
        varies = std > 8 * np.finfo(np.float64).eps * abs(mean) and std > np.finfo(np.float32).tiny
        return Numeric(
            name=self.name,
            mean=mean,
            std=std if varies else 1.0,  # dividing a constant column by 1 gives zero instead of NaN
            nullable=self._has_missing,
            boolean=self._are_booleans,
            wide=bool(varies and np.finfo(np.float32).eps * self._largest > COARSEST * std),
        )


class CategoryLearner:
    """Learns a categorical column: its levels and whether values are missing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._levels: set[str] = set()
        self._has_missing = False

    def add(self, frame: pd.DataFrame) -> None:
        values = frame[self.name]
        self._has_missing |= bool(values.isna().any())
        self._levels |= set(category_texts(values.dropna()).tolist())

    def learned(self) -> Categorical | None:
        """Returns the column, or None if no row has a value."""
        return Categorical(name=self.name, levels=sorted(self._levels), nullable=self._has_missing) if self._levels else None


class TableLearner:
    """Learns all feature columns of a table."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._columns: dict[str, NumberLearner | CategoryLearner] = {}

    def add(self, train: pd.DataFrame) -> None:
        """Adds further training rows; raises `DataError` as `finite` does."""
        for name in features(train, self.recipe):
            column = self._columns.get(name) or self._columns.setdefault(name, self._learner(name, train[name]))
            column.add(train)

    def columns(self) -> tuple[list[Numeric], list[Categorical]]:
        """Returns the numeric and the categorical columns.

        Raises:
            DataError: a column has no value, or there are no columns.
        """
        found = [column.learned() for column in self._columns.values()]
        for name, column in zip(self._columns, found, strict=True):
            if column is None:
                raise DataError(
                    "no training row has a value here",
                    where=f"column {name}",
                    hint="leave out the column (data.columns), or use data in which it has values",
                )
        if not found:
            raise DataError(
                "there are no feature columns", where="data.columns", hint="list feature columns besides the target"
            )
        return [c for c in found if isinstance(c, Numeric)], [c for c in found if isinstance(c, Categorical)]

    def _learner(self, name: str, values: pd.Series[Any]) -> NumberLearner | CategoryLearner:
        import pandas as pd

        is_named = name in (self.recipe.data.categorical or [])
        is_number = pd.api.types.is_numeric_dtype(values) or are_booleans(values)
        return NumberLearner(name) if is_number and not is_named else CategoryLearner(name)


class ClassLearner(TableLearner):
    """Learns a table with one label per row."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._labels: set[str | int] = set()

    def add(self, train: pd.DataFrame) -> None:
        super().add(train)
        self._labels |= distinct_labels(train, self.recipe)

    def schema(self) -> Schema:
        labels = sorted_labels(self._labels, self.recipe)
        numeric, categorical = self.columns()
        return Schema(shape=_shape(numeric, categorical, len(labels)), numeric=numeric, categorical=categorical, labels=labels)


class ValueLearner(TableLearner):
    """Learns a table with one numeric target per row."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._target = Moments()
        self._missing = 0
        self._first = math.nan

    def add(self, train: pd.DataFrame) -> None:
        super().add(train)
        target = finite(train, self.recipe.data.target)
        self._missing += int(np.isnan(target).sum())
        if len(target):
            self._first = float(target[0]) if not self._target.rows else self._first
            self._target.add(len(target), float(target.mean()), float(target.var()))

    def schema(self) -> Schema:
        numeric, categorical = self.columns()
        column, mean, std = self.recipe.data.target, self._target.mean, math.sqrt(self._target.variance)
        if self._missing:
            raise DataError(
                f"{self._missing} of {self._target.rows} training rows have no value",
                where=f"column {column}",
                hint=f"add {column} to data.drop_missing",
            )
        if not _varies(mean, std):
            raise DataError(
                f"every training row has the same value, {self._first:g}",
                where=f"column {column}",
                hint="use data in which the target varies, or set data.target to another column",
            )
        return Schema(
            shape=_shape(numeric, categorical, 1), numeric=numeric, categorical=categorical, target_mean=mean, target_std=std
        )


def features(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Returns the feature columns: all except the target and those that define the splits.

    A split by time puts test rows after all training rows, so its column has values that no network was trained on.
    """
    return recipe.data.features(map(str, frame.columns))


def numeric_column(frame: pd.DataFrame, name: str) -> Numeric:
    """Learns a numeric column that has at least one value.

    Raises:
        DataError: as `finite`.
    """
    learner = NumberLearner(name)
    learner.add(frame)
    found = learner.learned()
    assert found is not None
    return found


def are_booleans(values: pd.Series[Any]) -> bool:
    """Returns whether all values are true, false or missing."""
    import pandas as pd

    return pd.api.types.infer_dtype(values, skipna=True) == "boolean"


def finite(frame: pd.DataFrame, name: str) -> Floats:
    """Returns the numbers of a column, NaN for missing ones.

    Raises:
        DataError: a value is not a number, is infinite, or exceeds float32, the type that the network computes in.
    """
    try:
        numbers: Floats = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise DataError(
            f"contains {frame[name].dropna().iloc[0]!r}, which is not a number",
            where=f"column {name}",
            hint="choose another column, or a task that predicts classes",
        ) from None
    if (wrong := np.abs(numbers) > np.finfo(np.float32).max).any():
        raise DataError(
            f"{int(wrong.sum())} training rows are infinite or too large, for example {numbers[wrong][0]:g}",
            where=f"column {name}",
            hint=f"add an expectation that values of {name} are between bounds, or leave out the column",
        )
    return numbers


def category_texts(values: pd.Series[Any]) -> NDArray[Any]:
    """Converts categories to text, one by one (1.0 is `1`, also in a column with 2.5); missing values give the empty text."""
    import pandas as pd

    if isinstance(values.dtype, pd.StringDtype):
        return values.fillna("").to_numpy(dtype=object)
    codes, found = pd.factorize(values)
    return np.array([*(str(as_label(value)) for value in found), ""], dtype=object)[codes]


def _shape(numeric: list[Numeric], categorical: list[Categorical], outputs: int) -> Shape:
    return Shape(numeric=len(numeric), cardinalities=tuple(len(c.levels) + 1 for c in categorical), outputs=outputs)


def _varies(mean: float, std: float) -> bool:
    """Returns whether values differ by more than float32's rounding. A constant's std is not exactly zero, due to rounding."""
    return bool(std > np.finfo(np.float32).eps * abs(mean) and std > np.finfo(np.float32).tiny)
