"""The rows of a recipe in the order of time, as the batches in which a simulation lets them arrive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headrace.console import Report
from headrace.data.ingest import read_source
from headrace.data.tables import batch_files, read_arrow, to_frame
from headrace.errors import DataError, UsageError, near_miss
from headrace.project import Project
from headrace.recipe.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Every = Literal["day", "week", "month", "quarter", "year"]
PERIODS: dict[str, str] = {"day": "D", "week": "W", "month": "M", "quarter": "Q", "year": "Y"}
MOST = 500
"""Batches of one simulation."""
SAMPLE_SEED = 7


@dataclass(frozen=True)
class Arrival:
    """A batch."""

    name: str
    """The value of the column, for example `5` or `2024-05`."""
    table: pa.Table


def arrivals(
    recipe: Recipe,
    project: Project,
    report: Report,
    *,
    by: str | None,
    every: Every | None,
    first: int | None,
    rows: int | None,
) -> list[Arrival]:
    """Returns the batches, oldest first. The first one has the rows that are there at the beginning.

    Args:
        by: the column of time; by default that of `data.incremental`, else of `data.split.time`.
        every: for a column of times, how long a batch is; by default a month.
        first: number of values in the first batch; by default as `data.incremental` says, else 2.
        rows: the most rows of each value; by default all.

    Raises:
        UsageError: the recipe names no column of time, or there are too few or too many values.
        DataError: the column is missing or has missing values.
    """
    if recipe.data.pictures is not None or recipe.data.graph is not None:
        raise UsageError("pictures in files and graphs cannot be simulated", hint="headrace simulate takes recipes of tables")
    incremental = recipe.data.incremental
    column = by or (incremental.column if incremental else None) or recipe.window_column
    if column is None:
        raise UsageError(
            f"recipes/{recipe.name}.yaml names no column of time by which rows could arrive",
            where="--by",
            hint=f"headrace simulate {recipe.name} --by COLUMN, or `time: {{column: COLUMN}}` under data.split",
        )
    table = _table(recipe, project, report)
    names = _names(table, column, every)
    values = sorted(set(names))
    count = first or (incremental.first if incremental and incremental.column == column else 2)
    if len(values) <= count:
        raise UsageError(
            f"column {column!r} has {len(values)} values, and the first {count} are there at the beginning: no batch arrives",
            where="--first" if first else "--by",
            hint="lower --first, or name another column with --by",
        )
    if len(values) > MOST:
        raise UsageError(
            f"column {column!r} has {len(values):,} values, more than {MOST} batches",
            where="--by",
            hint="name a column of months or days; or have it read as times (data.times), and use --every month",
        )
    groups = [values[:count], *([value] for value in values[count:])]
    return [Arrival(str(group[-1]), _rows_of(table, names, group, rows)) for group in groups]


def _table(recipe: Recipe, project: Project, report: Report) -> pa.Table:
    """All rows: of an incremental source those that have not been ingested too; otherwise what is stored, or the source."""
    if recipe.data.incremental is None and batch_files(project, recipe.name):
        return read_arrow(project, recipe)
    return read_source(recipe, project, report).table


def _names(table: pa.Table, column: str, every: Every | None) -> pd.Series[Any]:
    """The name of each row's batch; names sort as time does.

    Raises:
        DataError, UsageError: as `arrivals`.
    """
    import pandas as pd

    if column not in table.column_names:
        raise DataError(f"no column {column!r}; {near_miss(column, table.column_names)}", where="--by", hint="name a column")
    values = to_frame(table.select([column]))[column]
    if missing := int(values.isna().sum()):
        raise DataError(
            f"{missing:,} rows have no value in {column!r}, so they would never arrive",
            where=f"column {column}",
            hint=f"add {column} to data.drop_missing",
        )
    if pd.api.types.is_datetime64_any_dtype(values):
        plain = values.dt.tz_localize(None) if getattr(values.dtype, "tz", None) is not None else values
        named: pd.Series[Any] = plain.dt.to_period(PERIODS[every or "month"]).astype(str)
        return named
    if every is not None:
        raise UsageError(
            f"column {column!r} holds no times, for example {values.iloc[0]}",
            where="--every",
            hint="without --every each value is a batch; data.times has columns read as times",
        )
    return values


def _rows_of(table: pa.Table, names: pd.Series[Any], group: list[Any], rows: int | None) -> pa.Table:
    rng, taken = np.random.default_rng(SAMPLE_SEED), []
    for value in group:
        found = np.flatnonzero((names == value).to_numpy())
        if rows is not None and len(found) > rows:
            found = np.sort(rng.choice(found, rows, replace=False))
        taken.append(found)
    return table.take(np.concatenate(taken))
