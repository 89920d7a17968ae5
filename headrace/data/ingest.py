"""The first batch of a recipe's data, from its source. Safe and quick to run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.sources.addresses import is_local, shown
from headrace.data.assembly import assemble
from headrace.data.formats.files import read_file
from headrace.data.commit import Report, changing, land, validate_or_quarantine
from headrace.data.sources.packages import Progress
from headrace.data.validation.quarantine import slug
from headrace.data.row_groups import comes_in_chunks, land_in_chunks
from headrace.data.sources.fetch import content_sha256, fetch, fetch_all
from headrace.data.tables import Selected, batch_files, stored_key, stored_schema
from headrace.data.versions import DataVersion, data_version, restore, track
from headrace.errors import DataError, near_miss
from headrace.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.recipe import Recipe
    from headrace.recipe.data import SourceFile

FIRST = "0000-first.parquet"
LAYOUT = 1
"""Raised when the same source would be written in another way."""
SHAPING = {"format", "encoding", "skip_rows", "rename", "join", "drop_duplicates", "graph"}
"""Further fields of the data section on which the landed table depends."""


def ingest(recipe: Recipe, project: Project, report: Report) -> DataVersion:
    """Brings `recipe.data.source` into `data/<recipe>/`, once. Nothing changed: nothing is read again. A folder that was
    deleted comes back from DVC's cache, else from the source, with the same hash.

    Raises:
        SourceError: the source cannot be fetched, or its sha256 differs.
        DataError: it cannot be read as the recipe says.
        DataRejected: it fails the recipe's expectations; nothing has changed.
        Busy, DiskFull.
    """
    with changing(project, f"data-{recipe.name}"):
        key = source_key(recipe, project)
        first = project.raw(recipe.name) / FIRST
        if not first.is_file() and restore(project, recipe.name):
            report(f"data/{recipe.name} came back from DVC's cache")
        if stored_key(first) == key:
            _require_columns(recipe, project)
            with changing(project, "data"):
                track(project)
            version = data_version(project, recipe.name)
            report(f"data/{recipe.name}: {version}, unchanged")
            return version
        paths = fetch_source(recipe, project, report)
        if comes_in_chunks(paths, recipe):
            land_in_chunks(paths, recipe, project, FIRST, key, report)
        else:
            selected = _assembled(paths, recipe, report)
            table = _first_values(selected.table, recipe, project)
            validate_or_quarantine(table, recipe, project, "first")
            _renew_arrived(selected.table, recipe, project, report)
            land(table, project, recipe, FIRST, key)  # last: its key says that all is done
        version = data_version(project, recipe.name)
        report(f"data/{recipe.name}: {version}")
        return version


def read_source(recipe: Recipe, project: Project, report: Report) -> Selected:
    """The whole source as the recipe asks for it.

    Raises:
        SourceError, DataError, DiskFull: as `fetch` and `assemble`.
    """
    return _assembled(fetch_source(recipe, project, report), recipe, report)


def fetch_source(recipe: Recipe, project: Project, report: Report) -> list[Path]:
    """The files of the source, on this machine.

    Raises:
        SourceError, DiskFull: as `fetch`.
    """
    data = recipe.data
    report(f"source {shown(data.origin)}")
    wanted = [(file.uri, file.sha256) for file in data.files]
    with _bar(Path(data.origin).name) as progress:
        return fetch_all(wanted, source_cache(project), project.root, progress)


def _assembled(paths: list[Path], recipe: Recipe, report: Report) -> Selected:
    selected = assemble(paths, recipe.data)
    for line in selected.left_out:
        report(line)
    if not selected.table.num_rows:
        raise DataError("no rows", where=str(paths[0]), hint="correct data.source, or data.drop_missing, in the recipe")
    return selected


def source_cache(project: Project) -> Path:
    return project.state / "cache" / "sources"


def source_key(recipe: Recipe, project: Project) -> str:
    """Stands for the source's content and for how it is read; it lies in the first batch's Parquet metadata.

    Raises:
        SourceError: a local source is gone.
    """
    data = recipe.data
    contents = [_content(file, project) for file in data.files]
    fields: dict[str, Any] = {
        "layout": LAYOUT,
        "content": contents[0] if len(contents) == 1 else contents,
        "header": data.header,
        "columns": data.columns,
        "drop_missing": data.drop_missing,
        "image": [data.target] if data.image else None,
        "arrive": data.arrive.column if data.arrive else None,
    }
    # What a recipe leaves at its default is left out, so that a new field changes no version that was there before.
    said = data.model_dump(include=SHAPING, exclude_defaults=True)
    for section in ("join", "graph"):
        if section in said:
            said[section] = {k: v for k, v in said[section].items() if k not in ("source", "edges", "sha256")}
    if data.parts:
        said["parts"] = [(file.part, file.role) for file in data.files]
    return hashlib.sha256(json.dumps(fields | said, sort_keys=True).encode()).hexdigest()


def _content(file: SourceFile, project: Project) -> str:
    """Stands for what one file of the source holds: its sha256, or its address where that is all we know."""
    if file.sha256 is not None or not is_local(file.uri):
        return file.sha256 or file.uri
    return content_sha256(fetch(file.uri, None, source_cache(project), project.root), file.uri)


def _require_columns(recipe: Recipe, project: Project) -> None:
    """
    Raises:
        DataError: the recipe names a column that the data, brought in before, does not have.
    """
    stored = stored_schema(project, recipe.name)
    data = recipe.data
    named = {
        "data.target": [data.target],
        "data.categorical": data.categorical or [],
        "data.split.time.column": [data.split.time.column] if data.split.time else [],
        "data.split.given.column": [data.split.given.column] if data.split.given else [],
        "data.split.group.column": [data.split.group.column] if data.split.group else [],
    }
    for field, names in named.items():
        for name in names:
            if stored is not None and name not in stored.names:
                raise DataError(
                    f"no column {name!r}; {near_miss(name, stored.names)}",
                    where=field,
                    hint=f"edit {field} in recipes/{recipe.name}.yaml",
                )


def values_in_order(table: pa.Table, column: str, recipe: Recipe) -> list[Any]:
    """Distinct values of the column whose values arrive one by one, ascending.

    Raises:
        DataError: no such column, or rows without a value in it.
    """
    if column not in table.column_names:
        raise DataError(
            f"no column {column!r}; {near_miss(column, table.column_names)}",
            where="data.arrive.column",
            hint=f"correct data.arrive.column in recipes/{recipe.name}.yaml",
        )
    if table[column].null_count:
        raise DataError(
            f"{table[column].null_count} rows have no value in {column!r}, so they would never arrive",
            where="data.arrive.column",
            hint=f"add {column} to data.drop_missing",
        )
    return sorted(table[column].unique().to_pylist())


def arrived_name(column: str, value: Any) -> str:
    """What a batch that arrived from the source is called, as in `0001-month-5.parquet`."""
    return slug(f"{column} {value}")


def _first_values(table: pa.Table, recipe: Recipe, project: Project) -> pa.Table:
    """The rows with the first values of `data.arrive.column`; all rows where nothing arrives."""
    import pyarrow as pa
    import pyarrow.compute as pc

    arrive = recipe.data.arrive
    if arrive is None:
        return table
    # Values that arrived since have batches of their own: a first batch that is made again holds what it held.
    before = read_file(path) if (path := project.raw(recipe.name) / FIRST).is_file() else None
    held = len(before[arrive.column].unique()) if before is not None and arrive.column in before.column_names else arrive.first
    first = values_in_order(table, arrive.column, recipe)[:held]
    return table.filter(pc.is_in(table[arrive.column], pa.array(first, table[arrive.column].type)))


def _renew_arrived(table: pa.Table, recipe: Recipe, project: Project, report: Report) -> None:
    """Batches that arrived from the source are made again when it, or the way it is read, has changed."""
    import pyarrow.compute as pc

    arrive = recipe.data.arrive
    later = [path for path in batch_files(project, recipe.name) if path.name != FIRST]
    values = (
        {arrived_name(arrive.column, v): v for v in values_in_order(table, arrive.column, recipe)} if arrive and later else {}
    )
    for path in later:
        value = values.get(path.stem.partition("-")[2])
        if arrive is None or value is None:
            report(f"{path.name} was added by hand and stays as it is")
            continue
        rows = table.filter(pc.equal(table[arrive.column], value))
        validate_or_quarantine(rows, recipe, project, f"{arrive.column} {value}")
        land(rows, project, recipe, path.name)


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """A bar once the size is known; none for what comes at once or does not say its size."""
    from headrace.console import Bar, bar

    with ExitStack() as stack:
        shown: list[Bar] = []

        def progress(done: int, total: int | None) -> None:
            if total and not shown:
                shown.append(stack.enter_context(bar(name, total)))
            if shown:
                shown[0].move(done)

        yield progress
