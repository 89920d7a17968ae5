"""Later batches of a recipe's data: each is one new file and one new version, added only when it passes validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.console import Report
from headrace.data.batch_drift import compare_batch, keep_comparison
from headrace.data.chunks import open_chunks
from headrace.data.commit import commit_batch, exclusive, validate_or_quarantine
from headrace.data.formats.files import read_file
from headrace.data.formats.graph_tables import check_edges, node_ids
from headrace.data.ingest import incremental_name, ingest, read_source, sorted_values
from headrace.data.tables import batch_files, no_data, read_arrow, read_batch, select, stored_schema
from headrace.data.versions import DataVersion, data_version, is_tracked, track
from headrace.errors import DataError, RecipeError
from headrace.events.publish import publish
from headrace.files import safe_filename
from headrace.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.recipe import Recipe

MAX_LABELS = 1000
"""With more distinct labels, new labels are not refused: the target may be an identifier."""


@dataclass(frozen=True)
class NextBatch:
    """The result of asking a source for its next batch."""

    version: DataVersion
    added: bool
    """False when the source has no later batch; the version is unchanged then."""


def add_batch(recipe: Recipe, file: Path, project: Project, report: Report) -> DataVersion:
    """Adds the rows of `file` as one new batch (`headrace data add RECIPE FILE`).

    Raises:
        DataError: the file cannot be read, lacks a column, has no rows, or holds the rows of an existing batch.
        DataRejected: it failed validation and is in quarantine; the version is unchanged.
        Busy, DiskFull: the version is unchanged.
    """
    with exclusive(project, f"data-{recipe.name}"):
        schema = stored_schema(project, recipe.name)
        if schema is None:
            raise no_data(recipe.name, project)
        if recipe.data.pictures is not None:
            return _add_pictures(recipe, file, project, report)
        selected = read_batch(file, recipe.data, schema)
        for line in selected.left_out:
            report(line)
        if not selected.table.num_rows:
            raise DataError("the batch has no rows", where=str(file), hint="use a file with at least one row below its header")
        duplicate = _find_duplicate(selected.table, project, recipe)
        if duplicate is not None:
            return _refuse_duplicate(duplicate, file, recipe, project, report)
        if recipe.data.graph is not None:
            check_edges(selected.table, recipe.data, node_ids(read_arrow(project, recipe), recipe.data), file)
        return _validate_and_commit(selected.table, safe_filename(file.name), file.name, recipe, project, report, file)


def _add_pictures(recipe: Recipe, file: Path, project: Project, report: Report) -> DataVersion:
    from headrace.data.pictures.ingest import listing_of_batch, refuse_duplicate, write_batch_of_pictures

    if not is_tracked(project):
        _complete_version(recipe, project, report)
    write_batch_of_pictures(
        [listing_of_batch(file, recipe, project)],
        recipe,
        project,
        f"{_next_number(project, recipe):04d}-{safe_filename(file.name)}.parquet",
        report,
        title=file.name,
        key=lambda written: None,
        check=lambda written: refuse_duplicate(written, recipe, project, file),
        known_labels=known_labels(project, recipe),
    )
    return _announce_batch(recipe, file.name, project, report)


def next_batch(recipe: Recipe, project: Project, report: Report) -> NextBatch:
    """Adds the rows with the next value of `data.incremental.column` from the source (`headrace data next RECIPE`). A
    source without a later value is not an error: the result says that nothing was added.

    Raises:
        RecipeError: the recipe has no `data.incremental`.
        SourceError, DataError, DataRejected, Busy, DiskFull: the version is unchanged.
    """
    incremental = recipe.data.incremental
    if incremental is None:
        raise RecipeError(
            "data.incremental: not set, so the source brings all rows at once",
            where=f"recipes/{recipe.name}.yaml",
            hint="write `incremental: {column: COLUMN, first: N}` under data, or use: headrace data add",
        )
    if not batch_files(project, recipe.name):
        return NextBatch(ingest(recipe, project, report), added=True)
    with exclusive(project, f"data-{recipe.name}"):
        if not is_tracked(project):
            return NextBatch(_complete_version(recipe, project, report), added=True)
        import pyarrow.compute as pc

        column = incremental.column
        source = read_source(recipe, project, report).table
        last = sorted_values(read_arrow(project, recipe), column, recipe)[-1]
        later = [value for value in sorted_values(source, column, recipe) if value > last]
        if not later:
            report(f"everything has arrived: the source has no {column} after {last}; the data version stays")
            return NextBatch(data_version(project, recipe.name), added=False)
        table = source.filter(pc.equal(source[column], later[0]))
        name, title = incremental_name(column, later[0]), f"{column} {later[0]}"
        return NextBatch(_validate_and_commit(table, name, title, recipe, project, report, None), added=True)


def known_labels(project: Project, recipe: Recipe) -> list[Any] | None:
    """Returns the labels in the data of a classification; None for other tasks, or with more than `MAX_LABELS`."""
    if "accuracy" not in recipe.task_type.metrics:
        return None
    found: dict[Any, None] = {}
    for table in open_chunks(batch_files(project, recipe.name), recipe.data).tables([recipe.data.target]):
        found |= dict.fromkeys(table[recipe.data.target].drop_null().unique().to_pylist())
        if len(found) > MAX_LABELS:
            return None
    return list(found)


def _validate_and_commit(
    table: pa.Table, name: str, title: str, recipe: Recipe, project: Project, report: Report, file: Path | None
) -> DataVersion:
    comparison = compare_batch(table, recipe, project)
    for line in comparison.lines():
        report(line)
    if picture := keep_comparison(comparison, recipe, project, title):
        report(f"  picture: {picture.relative_to(project.root)}")
    validation = validate_or_quarantine(
        table, recipe, project, title, file, known_labels(project, recipe), further=comparison.refused
    )
    report(validation.summary)
    commit_batch(table, project, recipe, f"{_next_number(project, recipe):04d}-{name}.parquet")
    return _announce_batch(recipe, title, project, report)


def _announce_batch(recipe: Recipe, title: str, project: Project, report: Report) -> DataVersion:
    """Reports and publishes the version of the data with the batch that was added last, and returns it."""
    version = data_version(project, recipe.name)
    report(f"data/{recipe.name}: {version.rows:,} rows in {len(version.batches)} batches, version {version.md5[:12]}")
    _publish_added(version, title, recipe, project, report)
    return version


def _publish_added(version: DataVersion, title: str, recipe: Recipe, project: Project, report: Report) -> None:
    """Publishes the version once, also where the process that has added its batch was killed before it could."""
    data = {"batch": title, "rows": version.rows, "batches": len(version.batches), "data_md5": version.md5}
    publish(project, "data-added", recipe.name, data, key=f"data added {recipe.name} {version.md5}", report=report)


def _next_number(project: Project, recipe: Recipe) -> int:
    return 1 + max(int(path.name.split("-")[0]) for path in batch_files(project, recipe.name))


def _find_duplicate(table: pa.Table, project: Project, recipe: Recipe) -> Path | None:
    """Returns the existing batch that holds exactly these rows, or None."""
    import pyarrow.parquet as pq

    for path in batch_files(project, recipe.name):
        if pq.read_metadata(path).num_rows != table.num_rows:
            continue
        try:
            if select(read_file(path), table.column_names, path).cast(table.schema).equals(table):
                return path
        except (ValueError, DataError):  # other types or columns mean other rows
            continue
    return None


def _refuse_duplicate(duplicate: Path, file: Path, recipe: Recipe, project: Project, report: Report) -> DataVersion:
    if not is_tracked(project):  # a run was killed after its rename: the same file completes the version
        return _complete_version(recipe, project, report)
    if (version := data_version(project, recipe.name)).batches[-1].name == duplicate.name:
        _publish_added(version, file.name, recipe, project, report)
    raise DataError(
        f"these rows were already added as batch {duplicate.name}",
        where=str(file),
        hint="nothing to do; or add another file",
    )


def _complete_version(recipe: Recipe, project: Project, report: Report) -> DataVersion:
    with exclusive(project, "data"):
        track(project)
    report("completed the version of an interrupted run")
    version = data_version(project, recipe.name)
    _publish_added(version, version.batches[-1].name, recipe, project, report)
    return version
