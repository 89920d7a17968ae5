"""Numbers of a column, and what is learned of numeric targets: one, or several."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.data.moments import Moments
from headrace.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from headrace.recipe.recipe import Recipe

MEANS, STDS = "target_means", "target_stds"
"""Keys of `Schema.extra`: mean and standard deviation of each of several targets."""
Floats = NDArray[np.float64]


class NumericTargets(Protocol):
    """Learns the numeric targets of training rows that arrive in chunks."""

    def add(self, train: pd.DataFrame) -> None:
        """Adds further training rows; raises `DataError` as `finite` does."""
        ...

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the schema that describe the targets.

        Raises:
            DataError: training rows have no value, or all the same.
        """
        ...


class OneTarget:
    """Learns one numeric target, after its transform."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._moments = Moments()
        self._missing = 0
        self._first = math.nan

    def add(self, train: pd.DataFrame) -> None:
        target = transformed_target(train, self._recipe)
        self._missing += int(np.isnan(target).sum())
        if len(target):
            first = train[self._recipe.data.target].iloc[0]
            self._first = float(first) if not self._moments.rows and first == first and first is not None else self._first
            self._moments.add(len(target), float(target.mean()), float(target.var()))

    def fields(self) -> dict[str, Any]:
        _require_values(self._recipe.data.target, self._moments, self._missing)
        mean, std = self._moments.mean, math.sqrt(self._moments.variance)
        _require_variation(self._recipe.data.target, mean, std, self._first, "set data.target to another column")
        return {"target_mean": mean, "target_std": std, "target_transform": self._recipe.data.target_transform}


class SeveralTargets:
    """Learns several numeric targets."""

    def __init__(self, recipe: Recipe) -> None:
        self._moments = {name: Moments() for name in recipe.data.targets}
        self._missing = dict.fromkeys(self._moments, 0)

    def add(self, train: pd.DataFrame) -> None:
        for name, moments in self._moments.items():
            values = finite(train, name)
            self._missing[name] += int(np.isnan(values).sum())
            if len(values):
                moments.add(len(values), float(values.mean()), float(values.var()))

    def fields(self) -> dict[str, Any]:
        means, stds = [], []
        for name, moments in self._moments.items():
            _require_values(name, moments, self._missing[name])
            mean, std = moments.mean, math.sqrt(moments.variance)
            _require_variation(name, mean, std, mean, f"remove {name} from data.target")
            means.append(mean)
            stds.append(std)
        return {"extra": {MEANS: means, STDS: stds}}


def _require_values(name: str, moments: Moments, missing: int) -> None:
    if missing:
        raise DataError(
            f"{missing} of {moments.rows} training rows have no value",
            where=f"column {name}",
            hint=f"add {name} to data.drop_missing",
        )


def _require_variation(name: str, mean: float, std: float, value: float, instead: str) -> None:
    if not varies(mean, std):
        raise DataError(
            f"every training row has the same value, {value:g}",
            where=f"column {name}",
            hint=f"use data in which {name} varies, or {instead}",
        )


def varies(mean: float, std: float) -> bool:
    """Returns whether values differ by more than float32's rounding. A constant's std is not exactly zero, due to rounding."""
    return bool(std > np.finfo(np.float32).eps * abs(mean) and std > np.finfo(np.float32).tiny)


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


def transformed_target(frame: pd.DataFrame, recipe: Recipe) -> Floats:
    """Returns the target after `data.target_transform`, `(rows,)`, NaN for missing ones.

    Raises:
        DataError: as `finite`; or a value has no logarithm or root.
    """
    column, name = recipe.data.target, recipe.data.target_transform
    target = finite(frame, column)
    if name is None:
        return target
    limit = {"log": 0.0, "log1p": -1.0, "sqrt": 0.0}[name]
    wrong = target < limit if name == "sqrt" else target <= limit
    if wrong.any():
        other = "" if name != "log" or (target <= -1).any() else "use log1p, which takes zero; or "
        raise DataError(
            f"{int(wrong.sum()):,} rows have no {name}, for example {target[wrong][0]:g}",
            where=f"column {column} (data.target_transform: {name})",
            hint=f"{other}remove data.target_transform, or leave these rows out of the data",
        )
    functions: dict[str, Any] = {"log": np.log, "log1p": np.log1p, "sqrt": np.sqrt}
    values: Floats = functions[name](target)
    return values
