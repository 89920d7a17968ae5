"""What is learned of a table's columns, piece by piece; of a table that comes as one piece, what it says as a whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.task_types.base import Categorical, Numeric, Schema, Shape, distinct_labels, plain, sorted_labels

if TYPE_CHECKING:
    import pandas as pd

    from headrace.recipe.recipe import Recipe

COARSEST = 1e-4
"""Standard deviations; where float32 rounds a column's values by more, they are scaled in float64."""
Floats = NDArray[np.float64]


class Moments:
    """Mean and variance of numbers that come in pieces (Chan, Golub, LeVeque 1983,
    https://doi.org/10.1080/00031305.1983.10483115, eq. 2.1): as exact as of one piece, up to rounding."""

    def __init__(self) -> None:
        self.rows = 0
        self.mean = 0.0
        self.variance = 0.0

    def add(self, rows: int, mean: float, variance: float) -> None:
        """Takes in a piece of `rows` numbers."""
        together = self.rows + rows
        if not self.rows:
            self.rows, self.mean, self.variance = rows, mean, variance
        elif rows:
            share, apart = rows / together, mean - self.mean
            self.mean += apart * share
            self.variance = self.variance * (1 - share) + variance * share + apart**2 * share * (1 - share)
            self.rows = together


class NumberLearner:
    """Of a column of numbers: its moments, its gaps, and whether float32 can tell its values apart."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._moments = Moments()
        self._has_gaps = False
        self._are_booleans = True
        self._largest = 0.0

    def add(self, frame: pd.DataFrame) -> None:
        """
        Raises:
            DataError: as `finite`.
        """
        numbers = finite(frame, self.name)
        missing = np.isnan(numbers)
        self._has_gaps |= bool(missing.any())
        if missing.all():
            return
        centre = numbers[~missing][0]
        # Around a value of the column's own: sums of large numbers would lose the digits in which they differ.
        apart = numbers - centre
        self._moments.add(int((~missing).sum()), float(centre + np.nanmean(apart)), float(np.nanvar(apart)))
        self._are_booleans = self._are_booleans and are_booleans(frame[self.name])
        self._largest = max(self._largest, float(np.nanmax(np.abs(numbers))))

    def learned(self) -> Numeric | None:
        """The column; None where no row has a value."""
        if not self._moments.rows:
            return None
        mean, std = self._moments.mean, math.sqrt(self._moments.variance)
        varies = std > 8 * np.finfo(np.float64).eps * abs(mean) and std > np.finfo(np.float32).tiny
        return Numeric(
            name=self.name,
            mean=mean,
            std=std if varies else 1.0,  # a constant column says nothing; dividing by 1 keeps it at zero instead of NaN
            nullable=self._has_gaps,
            boolean=self._are_booleans,
            wide=bool(varies and np.finfo(np.float32).eps * self._largest > COARSEST * std),
        )


class CategoryLearner:
    """Of a column of categories: its levels and whether it has gaps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._levels: set[str] = set()
        self._has_gaps = False

    def add(self, frame: pd.DataFrame) -> None:
        values = frame[self.name]
        self._has_gaps |= bool(values.isna().any())
        self._levels |= set(texts_of(values.dropna()).tolist())

    def learned(self) -> Categorical | None:
        """The column; None where no row has a value."""
        return Categorical(name=self.name, levels=sorted(self._levels), nullable=self._has_gaps) if self._levels else None


class TableLearner:
    """Of a table: all columns to predict from."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._columns: dict[str, NumberLearner | CategoryLearner] = {}

    def add(self, train: pd.DataFrame) -> None:
        """
        Raises:
            DataError: as `finite`.
        """
        for name in features(train, self.recipe):
            column = self._columns.get(name) or self._columns.setdefault(name, self._learner(name, train[name]))
            column.add(train)

    def columns(self) -> tuple[list[Numeric], list[Categorical]]:
        """
        Raises:
            DataError: a column without a value, or no column at all.
        """
        found = [column.learned() for column in self._columns.values()]
        for name, column in zip(self._columns, found, strict=True):
            if column is None:
                raise DataError(
                    "no training row has a value here",
                    where=f"column {name}",
                    hint="leave the column out (data.columns), or bring data that fills it",
                )
        if not found:
            raise DataError(
                "no column is left to predict from", where="data.columns", hint="name feature columns beside the target"
            )
        return [c for c in found if isinstance(c, Numeric)], [c for c in found if isinstance(c, Categorical)]

    def _learner(self, name: str, values: pd.Series[Any]) -> NumberLearner | CategoryLearner:
        import pandas as pd

        is_named = name in (self.recipe.data.categorical or [])
        is_number = pd.api.types.is_numeric_dtype(values) or are_booleans(values)
        return NumberLearner(name) if is_number and not is_named else CategoryLearner(name)


class ClassLearner(TableLearner):
    """Of a table with a label a row."""

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
    """Of a table with a value a row."""

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
                hint="bring data in which the target varies, or name another column as data.target",
            )
        return Schema(
            shape=_shape(numeric, categorical, 1), numeric=numeric, categorical=categorical, target_mean=mean, target_std=std
        )


def features(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Columns to predict from: all but the target, and but those that divide rows.

    By time, rows to predict lie after all training rows, where no network has learned anything.
    """
    return recipe.data.features(map(str, frame.columns))


def numeric_column(frame: pd.DataFrame, name: str) -> Numeric:
    """What is learned of a column of numbers, at least one of which is there.

    Raises:
        DataError: as `finite`.
    """
    learner = NumberLearner(name)
    learner.add(frame)
    found = learner.learned()
    assert found is not None
    return found


def are_booleans(values: pd.Series[Any]) -> bool:
    """True and false, perhaps with gaps."""
    import pandas as pd

    return pd.api.types.infer_dtype(values, skipna=True) == "boolean"


def finite(frame: pd.DataFrame, name: str) -> Floats:
    """Numbers of a column, NaN for missing.

    Raises:
        DataError: a value that is no number, infinite, or beyond float32, in which the network computes.
    """
    try:
        numbers: Floats = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise DataError(
            f"holds {frame[name].dropna().iloc[0]!r}, which is no number",
            where=f"column {name}",
            hint="name another column, or a task that predicts classes",
        ) from None
    if (wrong := np.abs(numbers) > np.finfo(np.float32).max).any():
        raise DataError(
            f"{int(wrong.sum())} training rows are infinite or too large, such as {numbers[wrong][0]:g}",
            where=f"column {name}",
            hint=f"expect values of {name} to be between bounds, or leave the column out",
        )
    return numbers


def texts_of(values: pd.Series[Any]) -> NDArray[Any]:
    """Categories as text, each by itself (1.0 is `1` beside 2.5 too), and nothing as the empty text."""
    import pandas as pd

    if isinstance(values.dtype, pd.StringDtype):
        return values.fillna("").to_numpy(dtype=object)
    codes, found = pd.factorize(values)
    return np.array([*(str(plain(value)) for value in found), ""], dtype=object)[codes]


def _shape(numeric: list[Numeric], categorical: list[Categorical], outputs: int) -> Shape:
    return Shape(numeric=len(numeric), cardinalities=tuple(len(c.levels) + 1 for c in categorical), outputs=outputs)


def _varies(mean: float, std: float) -> bool:
    """Whether values differ by more than float32 can tell; float64's own rounding makes a constant's std not quite zero."""
    return bool(std > np.finfo(np.float32).eps * abs(mean) and std > np.finfo(np.float32).tiny)
