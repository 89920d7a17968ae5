"""Compares a new batch with the rows that are already in the data, before it is added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.data.tables import batch_files
from headrace.data.validation.validate import Failure
from headrace.files import read_cached_json, safe_filename, write_json
from headrace.monitoring.drift import FeatureDrift, compare_values
from headrace.monitoring.features import Feature, Values
from headrace.monitoring.profile import feature_profile
from headrace.project import Project
from headrace.recipe.drift import BatchDrift

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.recipe import Recipe

REFERENCE_ROWS = 200_000
"""Rows of the data that a batch is compared with; a random sample of more."""
MOST_NAMED = 10
FEWEST_ROWS = 20
"""Smaller batches are not compared: chance explains nearly any distance."""


@dataclass(frozen=True)
class ColumnDrift:
    """One column of a batch beside the same column of the data so far."""

    drift: FeatureDrift
    median: tuple[float, float] | None
    """Of the data so far and of the batch, for numbers."""

    @property
    def distance(self) -> float:
        """The total variation that chance does not explain, 0 to 1."""
        return max(0.0, self.drift.excess)

    @property
    def sentence(self) -> str:
        """For example `months: median 24, before 8.4; distance 0.61`."""
        return f"{self.drift.name}: {self._change}; distance {self.distance:.2f}"

    @property
    def _change(self) -> str:
        drift = self.drift
        if (drift.missing or 0) - drift.reference_missing > 0.1:
            return f"{drift.missing:.0%} missing, before {drift.reference_missing:.0%}"
        if self.median is not None and self.median[0] != self.median[1]:
            return f"median {self.median[1]:.4g}, before {self.median[0]:.4g}"
        most = max(drift.buckets, key=lambda bucket: bucket.window - bucket.reference)
        return f"{most.window:.0%} {most.name}, before {most.reference:.0%}"


@dataclass(frozen=True)
class BatchComparison:
    """A batch beside the data so far, the column with the largest distance first."""

    columns: list[ColumnDrift]
    rows: int
    """Rows of the data so far."""
    limits: BatchDrift

    @property
    def reported(self) -> list[ColumnDrift]:
        return [column for column in self.columns if column.distance >= self.limits.report]

    @property
    def refused(self) -> list[Failure]:
        """The columns whose distance the recipe does not allow, as failures of the validation."""
        limit = self.limits.refuse
        return [
            Failure(
                type="data.drift.refuse",
                column=column.drift.name,
                arguments={"at most": limit},
                implicit=False,
                observed=column.sentence,
                problem=f"{column.sentence.removeprefix(column.drift.name + ': ')}, less than {limit:g} required",
            )
            for column in self.columns
            if limit is not None and column.distance >= limit
        ]

    def lines(self) -> Iterator[str]:
        """What is printed: the columns that differ, or that none does."""
        if not self.columns:
            return
        reported = self.reported
        if not reported:
            worst = self.columns[0]
            yield (
                f"no column differs from the {self.rows:,} rows before by {self.limits.report:g} or more; "
                f"the largest distance is {worst.distance:.2f} ({worst.drift.name})"
            )
            return
        count = f"{len(reported)} column{'' if len(reported) == 1 else 's'}"
        yield f"{count} of the batch differ{'s' if len(reported) == 1 else ''} from the {self.rows:,} rows before:"
        yield from (f"  {column.sentence}" for column in reported[:MOST_NAMED])
        if len(reported) > MOST_NAMED:
            yield f"  and {len(reported) - MOST_NAMED} more"


def compare_batch(batch: pa.Table, recipe: Recipe, project: Project) -> BatchComparison:
    """Compares the columns of a batch with those of the data so far. Memory is bounded by `REFERENCE_ROWS`."""
    limits = recipe.data.drift or BatchDrift()
    names = _compared_columns(batch.column_names, recipe, limits)
    if batch.num_rows < FEWEST_ROWS or not names:
        return BatchComparison([], 0, limits)
    reference, rows = _reference(batch_files(project, recipe.name), names)
    found = []
    for feature, read in _features(batch, names, recipe):
        if not len(before := read(reference)):
            continue
        values = read(batch)
        median = _median(before), _median(values)
        drift = compare_values(feature_profile(feature, before), values)
        numeric = feature.kind == "numeric" and not any(np.isnan(median))
        found.append(ColumnDrift(drift, median if numeric else None))
    return BatchComparison(sorted(found, key=lambda one: (-one.drift.excess, one.drift.name)), rows, limits)


def keep_comparison(comparison: BatchComparison, recipe: Recipe, project: Project, batch_name: str) -> Path | None:
    """Writes the comparison as JSON, and as a picture where a column is reported; returns the picture."""
    folder = project.state / "validation" / "drift" / recipe.name
    name = safe_filename(batch_name)
    write_json(
        folder / f"{name}.json",
        {
            "rows": comparison.rows,
            "columns": [
                {"distance": one.distance, "median": one.median, **one.drift.model_dump(mode="json")}
                for one in comparison.columns
            ],
        },
    )
    if not (reported := comparison.reported):
        return None
    from headrace.monitoring.pictures import draw_distributions

    title = f"{recipe.name}: batch {batch_name} and the {comparison.rows:,} rows before"
    return draw_distributions([one.drift for one in reported], title, ("before", "batch"), folder / f"{name}.png")


def _compared_columns(names: Sequence[str], recipe: Recipe, limits: BatchDrift) -> list[str]:
    data = recipe.data
    if limits.columns is not None:
        return [name for name in limits.columns if name in names]
    others = {*data.times, *([data.incremental.column] if data.incremental else [])}
    wanted = {*data.features(names), *data.targets, *([data.text.column] if data.text else [])} - others
    return [name for name in names if name in wanted]


def _reference(files: Sequence[Path], names: list[str]) -> tuple[pa.Table, int]:
    """Returns the rows of the data, or a random sample of whole row groups where there are more than `REFERENCE_ROWS`, and the
    number of all rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = []
    for path in files:
        metadata = pq.read_metadata(path)
        groups += [(path, i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    rows = sum(size for _, _, size in groups)
    taken, seen = [], 0
    for at in np.random.default_rng(0).permutation(len(groups)):
        path, group, size = groups[at]
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group, columns=[name for name in names if name in file.schema_arrow.names])
        taken.append(table.slice(0, max(0, REFERENCE_ROWS - seen)))
        seen += size
        if seen >= REFERENCE_ROWS:
            break
    return pa.concat_tables(taken, promote_options="permissive"), rows


def _features(batch: pa.Table, names: list[str], recipe: Recipe) -> Iterator[tuple[Feature, Callable[[pa.Table], Values]]]:
    """Yields what is compared, each with a function that reads its values from a table: of pixels only the brightness."""
    if recipe.data.pixels is not None:
        pixels = [name for name in names if name not in recipe.data.targets]
        names = [name for name in names if name in recipe.data.targets]
        yield Feature("brightness", "brightness", "numeric"), partial(_mean_of, names=pixels)
    text = recipe.data.text.column if recipe.data.text else None
    categorical = {*(recipe.data.categorical or []), *(recipe.data.targets if "accuracy" in recipe.task_type.metrics else [])}
    for name in names:
        if name == text:
            yield Feature(f"{name}: length", name, "numeric"), partial(_lengths, name=name)
        elif _is_number(batch.schema.field(name).type) and name not in categorical:
            yield Feature(name, name, "numeric"), partial(_numbers, name=name)
        elif _is_category(batch.schema.field(name).type):
            yield Feature(name, name, "categorical"), partial(_categories, name=name)


def _is_number(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _is_category(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(_is_number(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind))


def _numbers(table: pa.Table, name: str) -> Values:
    import pyarrow as pa

    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _categories(table: pa.Table, name: str) -> Values:
    found = np.full(table.num_rows, None, dtype=object)
    if name in table.column_names:
        found[:] = [None if value is None else str(value) for value in table[name].to_pylist()]
    return found


def _lengths(table: pa.Table, name: str) -> Values:
    texts: list[Any] = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
    return np.array([np.nan if text is None else len(str(text)) for text in texts], dtype=np.float64)


def _mean_of(table: pa.Table, names: list[str]) -> Values:
    total = np.zeros(table.num_rows)
    for name in names:
        total += np.nan_to_num(_numbers(table, name))
    return total / max(1, len(names))


def _median(values: Values) -> float:
    if values.dtype == object or not np.isfinite(values).any():
        return float("nan")
    return float(np.median(values[np.isfinite(values)]))


def kept_sentences(recipe: Recipe, project: Project, batch_file: str) -> list[str]:
    """How a batch that was added differs from the rows before it, in sentences, by what `keep_comparison` wrote.

    Args:
        batch_file: the name of the file in `data/<recipe>`, without its extension: `0003-june`.
    """
    name = batch_file.partition("-")[2] or batch_file
    stored = read_cached_json(project.state / "validation" / "drift" / recipe.name / f"{name}.json")
    if not isinstance(stored, dict):
        return []
    found = []
    for column in stored.get("columns", []):
        fields = {name: value for name, value in column.items() if name not in ("distance", "median")}
        median = tuple(column["median"]) if column.get("median") else None
        found.append(ColumnDrift(FeatureDrift.model_validate(fields), median))
    limits = recipe.data.drift or BatchDrift()
    return [one.sentence for one in BatchComparison(found, int(stored.get("rows", 0)), limits).reported[:MOST_NAMED]]
