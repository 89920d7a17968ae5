"""Learns the schema of a table, column by column, from rows that arrive in chunks or all at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headrace.data.moments import Moments
from headrace.errors import DataError
from headrace.models.schema import Categorical, Numeric, Scale, Schema, Shape, Time
from headrace.recipe.columns import RESERVED_FIELDS
from headrace.runtime.values import seconds_of
from headrace.task_types.base import as_label, distinct_labels, label_counts, require_learned, sorted_labels
from headrace.task_types.numeric_targets import Floats, NumericTargets, finite, transformed_target

if TYPE_CHECKING:
    import pandas as pd

    from headrace.recipe.recipe import Recipe

COARSEST = 1e-4
"""Standard deviations; if float32 rounds a column's values by more, they are scaled in float64."""


@dataclass(frozen=True)
class Columns:
    """The learned columns of a table."""

    numeric: list[Numeric]
    categorical: list[Categorical]
    times: list[Time]

    def schema(self, outputs: int, **learned: Any) -> Schema:
        """Returns the schema of a network with this number of outputs."""
        from headrace.models.time_features import width

        shape = Shape(
            numeric=len(self.numeric) + width(self.times),
            cardinalities=tuple(len(c.levels) + 1 for c in self.categorical),
            outputs=outputs,
        )
        return Schema(shape=shape, numeric=self.numeric, categorical=self.categorical, times=self.times, **learned)


@runtime_checkable
class NotesGaps(Protocol):
    """A learner to which the rows of validation and test show in which columns values may be missing, and nothing else."""

    def note_gaps(self, frame: pd.DataFrame) -> None: ...


class NumberLearner:
    """Learns a numeric column: its moments, whether values are missing, and whether float32 can tell its values apart."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._moments = Moments()
        self._has_missing = False
        self._are_booleans = True
        self._low, self._high = math.inf, -math.inf

    def note_gaps(self, frame: pd.DataFrame) -> None:
        """Learns from rows of any split whether values may be missing."""
        self._has_missing |= bool(frame[self.name].isna().any())

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
        self._low = min(self._low, float(np.nanmin(numbers)))
        self._high = max(self._high, float(np.nanmax(numbers)))

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
            wide=bool(varies and np.finfo(np.float32).eps * max(abs(self._low), abs(self._high)) > COARSEST * std),
            low=self._low,
            high=self._high,
        )


class CategoryLearner:
    """Learns a categorical column: its levels and whether values are missing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._levels: set[str] = set()
        self._has_missing = False

    def note_gaps(self, frame: pd.DataFrame) -> None:
        """Learns from rows of any split whether values may be missing."""
        self._has_missing |= bool(frame[self.name].isna().any())

    def add(self, frame: pd.DataFrame) -> None:
        values = frame[self.name]
        self._has_missing |= bool(values.isna().any())
        self._levels |= set(category_texts(values.dropna()).tolist())

    def learned(self) -> Categorical | None:
        """Returns the column, or None if no row has a value."""
        return Categorical(name=self.name, levels=sorted(self._levels), nullable=self._has_missing) if self._levels else None


class TimeLearner:
    """Learns a column of times: its range, whether values are missing, and how its features are scaled."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name = name
        self._column = recipe.data.times[name]
        self._parts = [str(part) for part in recipe.data.time_parts(name)]
        self._since = self._column.since if self._column.since in recipe.data.times else None
        self._moments = {part: Moments() for part in self._parts if part in ("year", "elapsed")}
        self._has_missing = False
        self._low, self._high = math.inf, -math.inf

    def note_gaps(self, frame: pd.DataFrame) -> None:
        """Learns from rows of any split whether values may be missing."""
        self._has_missing |= bool(frame[self.name].isna().any())

    def add(self, frame: pd.DataFrame) -> None:
        """Adds further training rows; raises `DataError` if the column holds no times."""
        seconds = moments_of(frame, self.name)
        present = seconds[~np.isnan(seconds)]
        self._has_missing |= len(present) < len(seconds)
        if not len(present):
            return
        self._low, self._high = min(self._low, float(present.min())), max(self._high, float(present.max()))
        start = moments_of(frame, self._since) if self._since else np.zeros(len(seconds))
        values = {"elapsed": (seconds - start) / 86_400, "year": 1970 + seconds / (365.2425 * 86_400)}
        for part, moments in self._moments.items():
            found = values[part][~np.isnan(values[part])]
            if len(found):
                moments.add(len(found), float(found.mean()), float(found.var()))

    def learned(self) -> Time | None:
        """Returns the column, or None if no row has a value."""
        if self._low > self._high:
            return None
        scales = {part: _scale(moments) for part, moments in self._moments.items()}
        reference = 0.0
        if self._column.since is not None and self._since is None:
            reference = seconds_of(self._column.since)
        if "elapsed" in scales and self._since is None:
            scales["elapsed"] = Scale(mean=scales["elapsed"].mean - reference / 86_400, std=scales["elapsed"].std)
        return Time(
            name=self.name,
            features=self._parts,
            since=self._since,
            reference=reference,
            scales=scales,
            nullable=self._has_missing,
            low=self._low,
            high=self._high,
        )


def _scale(moments: Moments) -> Scale:
    std = math.sqrt(moments.variance)
    return Scale(mean=moments.mean, std=std if std > 8 * np.finfo(np.float64).eps * abs(moments.mean) else 1.0)


class TableLearner:
    """Learns all feature columns of a table."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._columns: dict[str, NumberLearner | CategoryLearner | TimeLearner] = {}

    def add(self, train: pd.DataFrame) -> None:
        """Adds further training rows; raises `DataError` as `finite` does."""
        for column in self._of(train):
            column.add(train)

    def note_gaps(self, frame: pd.DataFrame) -> None:
        """Learns from rows of any split in which columns values may be missing: that does not depend on the split."""
        for column in self._of(frame):
            column.note_gaps(frame)

    def columns(self) -> Columns:
        """Returns the numeric and the categorical columns, and those of times.

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
        if not found and self.recipe.data.text is None:
            raise DataError(
                "there are no feature columns", where="data.columns", hint="list feature columns besides the target"
            )
        return Columns(
            [c for c in found if isinstance(c, Numeric)],
            [c for c in found if isinstance(c, Categorical)],
            [c for c in found if isinstance(c, Time)],
        )

    def _of(self, frame: pd.DataFrame) -> list[NumberLearner | CategoryLearner | TimeLearner]:
        return [
            self._columns.get(name) or self._columns.setdefault(name, self._learner(name, frame[name]))
            for name in features(frame, self.recipe)
        ]

    def _learner(self, name: str, values: pd.Series[Any]) -> NumberLearner | CategoryLearner | TimeLearner:
        import pandas as pd

        if name in self.recipe.data.times:
            return TimeLearner(name, self.recipe)
        is_named = name in (self.recipe.data.categorical or [])
        is_number = pd.api.types.is_numeric_dtype(values) or are_booleans(values)
        return NumberLearner(name) if is_number and not is_named else CategoryLearner(name)


class ClassLearner(TableLearner):
    """Learns a table with one label per row."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._labels: set[str | int] = set()
        self._counts: dict[str | int, int] = {}

    def note_gaps(self, frame: pd.DataFrame) -> None:
        """Also counts the labels of rows of any split."""
        super().note_gaps(frame)
        if self.recipe.data.target in frame and not self.recipe.task_type.is_multilabel:
            for label, count in label_counts([frame], self.recipe).items():
                self._counts[label] = self._counts.get(label, 0) + count

    def add(self, train: pd.DataFrame) -> None:
        super().add(train)
        self._labels |= distinct_labels(train, self.recipe)

    def schema(self) -> Schema:
        labels = sorted_labels(self._labels, self.recipe)
        require_learned(self._counts, self._labels, self.recipe)
        return self.columns().schema(len(labels), labels=labels, extra=reading_rules(self.recipe))


class NumbersLearner(TableLearner):
    """Learns a table with numeric targets."""

    def __init__(self, recipe: Recipe, targets: NumericTargets) -> None:
        super().__init__(recipe)
        self._targets = targets

    def add(self, train: pd.DataFrame) -> None:
        super().add(train)
        self._targets.add(train)

    def schema(self) -> Schema:
        columns, fields = self.columns(), self._targets.fields()
        extra = {**reading_rules(self.recipe), **fields.pop("extra", {})}
        return columns.schema(len(self.recipe.data.targets), extra=extra, **fields)

    def note_gaps(self, frame: pd.DataFrame) -> None:
        """Also checks the targets of all rows; raises `DataError` as `transformed_target` does."""
        super().note_gaps(frame)
        if self.recipe.data.target_transform is not None:
            transformed_target(frame, self.recipe)


def reading_rules(recipe: Recipe) -> dict[str, Any]:
    """Returns the rules that the contract has too, for the schema, so that the contract is written again when one changes."""
    rules = recipe.data.model_dump(mode="json", include={"missing", "trim", "parse", "times"}, exclude_defaults=True)
    return {"reading": rules} if rules else {}


def features(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Returns the feature columns: all except the target and those that define the splits.

    A split by time puts test rows after all training rows, so its column has values that no network was trained on.

    Raises:
        DataError: a feature has a reserved name.
    """
    names = recipe.data.features(map(str, frame.columns))
    for name in names:
        if name in RESERVED_FIELDS:
            raise DataError(
                f"no feature can be named {name!r}: {RESERVED_FIELDS[name]}",
                where=f"column {name!r}",
                hint=f"rename it (data.rename: {{{name or repr('')}: NEW_NAME}}), or leave it out (data.columns)",
            )
    return names


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


def moments_of(frame: pd.DataFrame, name: str) -> Floats:
    """Returns the seconds since 1970 of a column of times, `(rows,)`, NaN for missing ones.

    Raises:
        DataError: the column does not hold times.
    """
    import pandas as pd

    values = frame[name]
    if not pd.api.types.is_datetime64_any_dtype(values):
        if values.isna().all():
            return np.full(len(values), np.nan)
        raise DataError(
            f"contains {values.dropna().iloc[0]!r}, which is not a time",
            where=f"column {name}",
            hint=f"set data.times.{name}.format to how its times are written, for example %d/%m/%Y, and ingest the data again",
        )
    micros = values.to_numpy(dtype="datetime64[us]")  # UTC where the column has a zone
    return np.where(np.isnat(micros), np.nan, micros.astype("int64") / 1e6)


def category_texts(values: pd.Series[Any]) -> NDArray[Any]:
    """Converts categories to text, one by one (1.0 is `1`, also in a column with 2.5); missing values give the empty text."""
    import pandas as pd

    if isinstance(values.dtype, pd.StringDtype):
        return values.fillna("").to_numpy(dtype=object)
    codes, found = pd.factorize(values)
    return np.array([*(str(as_label(value)) for value in found), ""], dtype=object)[codes]
