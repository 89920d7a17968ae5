"""More data for a recipe: one batch is one new file and one new version, and only a batch that passes the gate lands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.chunks import in_chunks
from headrace.data.formats.graph_tables import check_edges, node_ids
from headrace.data.ingest import arrived_name, ingest, read_source, values_in_order
from headrace.data.commit import Report, changing, land, validate_or_quarantine
from headrace.data.validation.quarantine import slug
from headrace.data.tables import batch_files, no_data, read_arrow, read_batch, select, stored_schema
from headrace.data.versions import DataVersion, data_version, is_tracked, track
from headrace.errors import DataError, RecipeError
from headrace.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.recipe import Recipe

LABEL_LIMIT = 1000
"""More distinct labels than this are not held against a batch: the target may be an identifier."""


def add_batch(recipe: Recipe, file: Path, project: Project, report: Report) -> DataVersion:
    """Adds the rows of `file` as one new batch (`headrace data add RECIPE FILE`).

    Raises:
        DataError: it cannot be read, lacks a column, holds no rows, or is a batch already in.
        DataRejected: it failed the gate and lies in quarantine; the version stays as it was.
        Busy, DiskFull: the version stays as it was.
    """
    with changing(project, f"data-{recipe.name}"):
        like = stored_schema(project, recipe.name)
        if like is None:
            raise no_data(recipe.name, project)
        selected = read_batch(file, recipe.data, like)
        for line in selected.left_out:
            report(line)
        if not selected.table.num_rows:
            raise DataError(
                "the batch holds no rows", where=str(file), hint="bring a file with at least one row below its header"
            )
        twin = _twin(selected.table, project, recipe)
        if twin is not None:
            return _already_in(twin, file, recipe, project, report)
        if recipe.data.graph is not None:
            check_edges(selected.table, recipe.data, node_ids(read_arrow(project, recipe), recipe.data), file)
        return _add(selected.table, slug(file.name), file.name, recipe, project, report, file)


def next_batch(recipe: Recipe, project: Project, report: Report) -> DataVersion:
    """Adds the rows with the next value of `data.arrive.column` from the source (`headrace data next RECIPE`).

    Raises:
        RecipeError: the recipe has no `data.arrive`.
        DataError: the source holds no later value.
        SourceError, DataRejected, Busy, DiskFull: the version stays as it was.
    """
    arrive = recipe.data.arrive
    if arrive is None:
        raise RecipeError(
            "data.arrive: not set, so the source brings all rows at once",
            where=f"recipes/{recipe.name}.yaml",
            hint="write `arrive: {column: COLUMN, first: N}` under data, or use: headrace data add",
        )
    if not batch_files(project, recipe.name):
        return ingest(recipe, project, report)
    with changing(project, f"data-{recipe.name}"):
        if not is_tracked(project):
            return _complete(recipe, project, report)
        import pyarrow.compute as pc

        source = read_source(recipe, project, report).table
        last = values_in_order(read_arrow(project, recipe), arrive.column, recipe)[-1]
        later = [value for value in values_in_order(source, arrive.column, recipe) if value > last]
        if not later:
            raise DataError(
                f"the source holds no {arrive.column} after {last}: everything has arrived",
                where=recipe.data.origin,
                hint=f"bring newer rows as a file: headrace data add {recipe.name} FILE",
            )
        table = source.filter(pc.equal(source[arrive.column], later[0]))
        return _add(table, arrived_name(arrive.column, later[0]), f"{arrive.column} {later[0]}", recipe, project, report, None)


def known_labels(project: Project, recipe: Recipe) -> list[Any] | None:
    """Labels of the data already in, for a classification; None for a regression, or where there are very many."""
    if "accuracy" not in recipe.kind.metrics:
        return None
    found: dict[Any, None] = {}
    for table in in_chunks(batch_files(project, recipe.name), recipe.data).tables([recipe.data.target]):
        found |= dict.fromkeys(table[recipe.data.target].drop_null().unique().to_pylist())
        if len(found) > LABEL_LIMIT:
            return None
    return list(found)


def _add(
    table: pa.Table, name: str, shown: str, recipe: Recipe, project: Project, report: Report, file: Path | None
) -> DataVersion:
    found = validate_or_quarantine(table, recipe, project, shown, file, known_labels(project, recipe))
    report(f"{found.passed} of {found.total} expectations met on {found.rows:,} rows")
    land(table, project, recipe, f"{_next_number(project, recipe):04d}-{name}.parquet")
    version = data_version(project, recipe.name)
    report(f"data/{recipe.name}: {version.rows:,} rows in {len(version.batches)} batches, version {version.md5[:12]}")
    return version


def _next_number(project: Project, recipe: Recipe) -> int:
    return 1 + max(int(path.name.split("-")[0]) for path in batch_files(project, recipe.name))


def _twin(table: pa.Table, project: Project, recipe: Recipe) -> Path | None:
    """The batch already in that holds exactly these rows."""
    import pyarrow.parquet as pq

    from headrace.data.formats.files import read_file

    for path in batch_files(project, recipe.name):
        if pq.read_metadata(path).num_rows != table.num_rows:
            continue
        try:
            if select(read_file(path), table.column_names, path).cast(table.schema).equals(table):
                return path
        except (ValueError, DataError):  # other types or columns: other rows
            continue
    return None


def _already_in(twin: Path, file: Path, recipe: Recipe, project: Project, report: Report) -> DataVersion:
    if not is_tracked(project):  # a run that was killed after the rename left it so
        return _complete(recipe, project, report)
    raise DataError(
        f"these rows are already in, as batch {twin.name}", where=str(file), hint="nothing is left to do; or bring another file"
    )


def _complete(recipe: Recipe, project: Project, report: Report) -> DataVersion:
    with changing(project, "data"):
        track(project)
    report("completed the version that an interrupted run left")
    return data_version(project, recipe.name)
