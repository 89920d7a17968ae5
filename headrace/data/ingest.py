"""Brings the first batch of a recipe's data from its source. Safe and quick to run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.console import Report
from headrace.data.assembly import assemble
from headrace.data.chunked_ingest import ingest_in_chunks, is_chunked_source
from headrace.data.commit import commit_batch, exclusive, validate_or_quarantine
from headrace.data.formats.files import read_file
from headrace.data.pointer import NamedFile, out_of_reach
from headrace.data.sources.addresses import is_local, redacted
from headrace.data.sources.databases import export, is_database
from headrace.data.sources.fetch import content_sha256, fetch, fetch_all
from headrace.data.sources.packages import Progress
from headrace.data.tables import SelectedTable, batch_files, stored_key, stored_schema
from headrace.data.validation.stored import keep_report
from headrace.data.versions import DataVersion, data_version, missing_files, restore, track
from headrace.errors import DataError, near_miss
from headrace.files import atomic_write, safe_filename
from headrace.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.data import SourceFile
    from headrace.recipe.recipe import Recipe

FIRST = "0000-first.parquet"
LAYOUT = 1
"""Incremented when the same source would be written in another way."""
SHAPING_FIELDS = {
    *("format", "folder", "encoding", "read", "skip_rows", "rename", "join", "drop_duplicates", "drop_values", "graph"),
    *("missing", "trim", "parse"),
}
"""Further fields of the data section that change the stored table."""


def ingest(recipe: Recipe, project: Project, report: Report) -> DataVersion:
    """Brings `recipe.data.source` into `data/<recipe>/`. When nothing has changed, nothing is read again. A folder that was
    deleted is restored from DVC's cache or its remote. What neither has comes from the source, if that was the only batch.

    Raises:
        SourceError: the source cannot be fetched, or its sha256 differs.
        DataError: `data.dvc` names batches that can be had nowhere, or more rows than the source has.
        DataError: it cannot be read with the recipe's options.
        DataRejected: it fails the recipe's expectations; nothing has changed.
        Busy, DiskFull: nothing has changed.
    """
    with exclusive(project, f"data-{recipe.name}"):
        first = project.raw_data(recipe.name) / FIRST
        # the key of pictures is computed while they are read for the first time
        key = source_key(recipe, project) if first.is_file() or not recipe.data.pictures else None
        if not first.is_file() and restore(project, recipe.name) and first.is_file():  # not only the encoder that it adapts
            report(f"data/{recipe.name} was restored from DVC's cache")
        lost = _require_later_batches(recipe, project)
        if first.is_file() and stored_key(first) == (key or source_key(recipe, project)):
            _require_columns(recipe, project)
            with exclusive(project, "data"):
                track(project)
            version = data_version(project, recipe.name)
            report(f"data/{recipe.name}: {version}, unchanged")
            return version
        if recipe.data.pictures is not None:
            return _ingest_pictures(recipe, project, report, lambda rows: _require_rows(rows, lost))
        assert key is not None, "only pictures are read before their key is known"
        paths = fetch_source(recipe, project, report)
        if is_chunked_source(paths, recipe):
            validation = ingest_in_chunks(paths, recipe, project, FIRST, key, report, lambda rows: _require_rows(rows, lost))
        else:
            selected = _assembled(paths, recipe, report)
            table = _first_values(selected.table, recipe, project)
            _require_rows(table.num_rows, lost)
            validation = validate_or_quarantine(table, recipe, project, "first")
            _update_later_batches(selected.table, recipe, project, report)
            commit_batch(table, project, recipe, FIRST, key)  # last: its key marks a complete ingest
        _require_columns(recipe, project)
        keep_report(validation, recipe, project)
        version = data_version(project, recipe.name)
        report(f"data/{recipe.name}: {version}")
        return version


def _ingest_pictures(recipe: Recipe, project: Project, report: Report, check_rows: Callable[[int], None]) -> DataVersion:
    from headrace.data.pictures.ingest import write_batch_of_pictures
    from headrace.data.pictures.shards import Written
    from headrace.data.pictures.sources import keep_hashes, listings_of

    def key(written: Written) -> str:
        keep_hashes(recipe, project, written.hashes)
        return source_key(recipe, project)

    report(f"source {redacted(recipe.data.origin)}")
    with _bar(Path(recipe.data.origin).name) as progress:
        listings = listings_of(recipe, project, source_cache(project), progress)
    check = lambda written: check_rows(written.rows.num_rows)  # noqa: E731
    validation = write_batch_of_pictures(listings, recipe, project, FIRST, report, title="first", key=key, check=check)
    keep_report(validation, recipe, project)
    version = data_version(project, recipe.name)
    report(f"data/{recipe.name}: {version}")
    return version


def _require_later_batches(recipe: Recipe, project: Project) -> NamedFile | None:
    """Returns the first batch that `data.dvc` names, if it is neither here nor in DVC's cache: the source may bring it again.

    Raises:
        DataError: later batches are lost too; the source does not bring those.
    """
    missing = missing_files(project, recipe.name)
    first = [file for file in missing if file.path == f"{recipe.name}/{FIRST}"]
    if len(missing) > len(first):
        raise out_of_reach(recipe.name, missing)
    return first[0] if first else None


def _require_rows(rows: int, lost: NamedFile | None) -> None:
    """
    Raises:
        DataError: the source has fewer rows than the lost first batch.
    """
    if lost is not None and lost.rows is not None and rows < lost.rows:
        raise DataError(
            f"the source has {rows:,} rows today, and data.dvc names {lost}, which neither DVC's cache nor a remote has",
            where=f"data/{lost.folder}",
            hint="dvc push where the data is, and dvc pull here; or name a source with all rows in data.source",
        )


def read_source(recipe: Recipe, project: Project, report: Report) -> SelectedTable:
    """Returns the whole source, with the recipe's columns and rows.

    Raises:
        SourceError, DataError, DiskFull: as `fetch` and `assemble`.
    """
    return _assembled(fetch_source(recipe, project, report), recipe, report)


def fetch_source(recipe: Recipe, project: Project, report: Report) -> list[Path]:
    """Returns the files of the source, fetched to this machine.

    Raises:
        SourceError, DiskFull: as `fetch`.
    """
    data = recipe.data
    report(f"source {redacted(data.origin)}")
    wanted = [(file.uri, file.sha256) for file in data.files if not is_database(file.uri)]
    with _bar(Path(data.origin).name) as progress:
        found = iter(fetch_all(wanted, source_cache(project), project.root, progress, project.settings.max_source_bytes))
    return [_exported(file.uri, recipe, project) if is_database(file.uri) else next(found) for file in data.files]


def _exported(uri: str, recipe: Recipe, project: Project) -> Path:
    """Returns the rows of a database as a Parquet file, read again at each call."""
    cache = source_cache(project)
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{recipe.name}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.parquet"
    with atomic_write(path) as temporary:
        export(uri, recipe.data.read, temporary, project.root)
    return path


def _assembled(paths: list[Path], recipe: Recipe, report: Report) -> SelectedTable:
    selected = assemble(paths, recipe.data)
    for line in selected.left_out:
        report(line)
    if not selected.table.num_rows:
        raise DataError("no rows", where=str(paths[0]), hint="correct data.source or data.drop_missing in the recipe")
    return selected


def source_cache(project: Project) -> Path:
    return project.state / "cache" / "sources"


def source_key(recipe: Recipe, project: Project) -> str:
    """Returns a hash of the source's content and of how it is read; the first batch has it in its Parquet metadata.

    Raises:
        SourceError: a local source is missing.
    """
    data = recipe.data
    contents = _contents(recipe, project)
    fields: dict[str, Any] = {
        "layout": LAYOUT,
        "content": contents[0] if len(contents) == 1 else contents,
        "header": data.header,
        "columns": data.columns,
        "drop_missing": data.drop_missing,
        "image": data.targets if data.pixels else None,
        "arrive": data.incremental.column if data.incremental else None,
    }
    # Fields with their default value are left out, so that a new field changes no existing version.
    shaping = data.model_dump(include=SHAPING_FIELDS, exclude_defaults=True)
    for section in ("join", "graph"):
        if section in shaping:
            shaping[section] = {k: v for k, v in shaping[section].items() if k not in ("source", "edges", "sha256")}
    if data.times:
        shaping["times"] = {name: column.format for name, column in data.times.items()}
    if data.pictures is not None:
        columns = [data.target, data.pictures.path, *data.split.columns]
        shaping["pictures"] = {"columns": columns, "broken": data.pictures.broken}
    if data.parts:
        shaping["parts"] = [(file.part, file.role) for file in data.files]
    return hashlib.sha256(json.dumps(fields | shaping, sort_keys=True).encode()).hexdigest()


def _contents(recipe: Recipe, project: Project) -> list[str]:
    if recipe.data.pictures is None:
        return [_content(file, project) for file in recipe.data.files]
    from headrace.data.pictures.sources import contents_of

    return contents_of(recipe, project, source_cache(project))


def _content(file: SourceFile, project: Project) -> str:
    """Identifies the content of one file of the source: its sha256, or its address when that is all we know."""
    if file.sha256 is not None or not is_local(file.uri):
        return file.sha256 or file.uri
    return content_sha256(fetch(file.uri, None, source_cache(project), project.root), file.uri)


def _require_columns(recipe: Recipe, project: Project) -> None:
    """
    Raises:
        DataError: the recipe names a column that the existing data does not have.
    """
    stored = stored_schema(project, recipe.name)
    data = recipe.data
    named = {
        "data.target": data.targets,
        "data.categorical": data.categorical or [],
        "data.parse": list(data.parse),
        "data.times": list(data.times),
        "data.split.time.column": [data.split.time.column] if data.split.time else [],
        "data.split.predefined.column": [data.split.predefined.column] if data.split.predefined else [],
        "data.split.group.column": [data.split.group.column] if data.split.group else [],
        "monitor.personal": recipe.monitor.personal,
    }
    for field, names in named.items():
        for name in names:
            if stored is not None and name not in stored.names:
                raise DataError(
                    f"no column {name!r}; {near_miss(name, stored.names)}",
                    where=field,
                    hint=f"edit {field} in recipes/{recipe.name}.yaml",
                )


def sorted_values(table: pa.Table, column: str, recipe: Recipe) -> list[Any]:
    """Returns the distinct values of the column by which an incremental source grows, ascending.

    Raises:
        DataError: no such column, or rows without a value in it.
    """
    if column not in table.column_names:
        raise DataError(
            f"no column {column!r}; {near_miss(column, table.column_names)}",
            where="data.incremental.column",
            hint=f"correct data.incremental.column in recipes/{recipe.name}.yaml",
        )
    if table[column].null_count:
        raise DataError(
            f"{table[column].null_count} rows have no value in {column!r}, so they would be in no batch",
            where="data.incremental.column",
            hint=f"add {column} to data.drop_missing",
        )
    return sorted(table[column].unique().to_pylist())


def incremental_name(column: str, value: Any) -> str:
    """Returns the name of a batch from an incremental source, as in `0001-month-5.parquet`."""
    return safe_filename(f"{column} {value}")


def _first_values(table: pa.Table, recipe: Recipe, project: Project) -> pa.Table:
    """Returns the rows with the first values of `data.incremental.column`, or all rows if the source is not incremental."""
    import pyarrow as pa
    import pyarrow.compute as pc

    incremental = recipe.data.incremental
    if incremental is None:
        return table
    # Later values have their own batches: a first batch that is written again keeps the values that it had.
    before = read_file(path) if (path := project.raw_data(recipe.name) / FIRST).is_file() else None
    held = (
        len(before[incremental.column].unique())
        if before is not None and incremental.column in before.column_names
        else incremental.first
    )
    first = sorted_values(table, incremental.column, recipe)[:held]
    return table.filter(pc.is_in(table[incremental.column], pa.array(first, table[incremental.column].type)))


def _update_later_batches(table: pa.Table, recipe: Recipe, project: Project, report: Report) -> None:
    """Writes the later batches of an incremental source again, after the source or the way it is read has changed."""
    import pyarrow.compute as pc

    incremental = recipe.data.incremental
    later = [path for path in batch_files(project, recipe.name) if path.name != FIRST]
    values = (
        {incremental_name(incremental.column, v): v for v in sorted_values(table, incremental.column, recipe)}
        if incremental and later
        else {}
    )
    for path in later:
        value = values.get(path.stem.partition("-")[2])
        if incremental is None or value is None:
            report(f"{path.name} was added from a file and is unchanged")
            continue
        rows = table.filter(pc.equal(table[incremental.column], value))
        validate_or_quarantine(rows, recipe, project, f"{incremental.column} {value}")
        commit_batch(rows, project, recipe, path.name)


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    """Shows a progress bar once the total size is known, and none for a source without one."""
    from headrace.console import Bar, bar

    with ExitStack() as stack:
        bars: list[Bar] = []

        def progress(done: int, total: int | None) -> None:
            if total and not bars:
                bars.append(stack.enter_context(bar(name, total)))
            if bars:
                bars[0].update(done)

        yield progress
