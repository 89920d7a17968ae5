"""The data of a backfill as files on this machine, and whether they are still what they were when it began."""

from __future__ import annotations

import hashlib
from pathlib import Path

from headrace.backfill.plan import SourceFile
from headrace.console import Report
from headrace.data.formats.partitions import partition_values, text_partitions
from headrace.data.sources import databases
from headrace.data.sources.addresses import is_local, local_file, local_files, redacted
from headrace.data.sources.archives import is_pattern
from headrace.data.sources.fetch import fetch
from headrace.errors import DataError, SourceError, UsageError, near_miss
from headrace.files import atomic_write, visible_names
from headrace.project import Project
from headrace.recipe.read import ReadConfig

OPTION = "--data"
ROWS = "rows.parquet"
"""Name of the file with the rows of a database."""
TABLES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson")
"""How the names of tables in a folder end."""


def find_files(data: str, read: ReadConfig | None, fetched: Path, project: Project, report: Report) -> list[Path]:
    """Returns the files with the rows of `data`, in the order in which they are scored.

    Args:
        data: a path (relative to the project), a pattern, a folder, an address, or a database.
        read: the query or the table of a database.
        fetched: where a copy is kept of what is not on this machine; it is made once.

    Raises:
        UsageError: the query does not suit the data.
        SourceError: the data does not exist, or cannot be fetched.
    """
    try:
        if databases.is_database(data):
            return [_exported(data, read, fetched / ROWS, project, report)]
        if read is not None:
            raise UsageError("only a database has a query or a table", where="--query", hint="leave it out")
        if is_local(data):
            return _local(data, project)
        return [_fetched(data, fetched, project, report)]
    except SourceError as error:
        raise type(error)(error.message, where=OPTION, hint=_own_hint(error.hint)) from None


def fingerprint(path: Path, partitions: dict[str, str | int | None]) -> SourceFile:
    """Returns what a file is now, by its bytes; of a folder of pictures, by the names and sizes of its files.

    Raises:
        DataError: it cannot be read.
    """
    try:
        size, mtime_ns = _state(path)
        return SourceFile(path=str(path), sha256=_hash(path), size=size, mtime_ns=mtime_ns, partitions=partitions)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), hint="make it readable for this user") from None


def partitions_of(files: list[Path], data: str, project: Project) -> list[dict[str, str | int | None]]:
    """Returns, for each file of a folder or pattern, the columns that the names of its folders below it have."""
    if len(files) == 1 and not (is_local(data) and (is_pattern(data) or local_file(data, project.root).is_dir())):
        return [{}]
    root = Path(str(local_file(data, project.root)).partition("*")[0])
    root = root if root.is_dir() else root.parent
    inner = [path.relative_to(root) for path in files if path.is_relative_to(root)]
    text = text_partitions(inner)
    return [partition_values(path.relative_to(root), text) if path.is_relative_to(root) else {} for path in files]


def require_unchanged(file: SourceFile) -> None:
    """Compares a file with what it was when the backfill began: by size and time, and by its bytes if these differ.

    Raises:
        DataError: it is gone, or has changed.
    """
    path = Path(file.path)
    try:
        if _state(path) == (file.size, file.mtime_ns) or _hash(path) == file.sha256:
            return
    except FileNotFoundError:
        hint = "bring it back, and run the same command; or start again: add --restart"
        raise DataError("the file is gone", where=file.path, hint=hint) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=file.path, hint="then run the same command") from None
    raise DataError(
        "the file has changed since the backfill began",
        where=file.path,
        hint="restore it, and run the same command; or start again with what it is now: add --restart",
    )


def _local(data: str, project: Project) -> list[Path]:
    place = local_file(data, project.root)
    if is_pattern(str(place)):
        if not (found := [path.resolve() for path in local_files(data, project.root)]):
            raise SourceError(f"no file matches {data}", hint="correct the pattern (`*` matches any characters)")
        return found
    if place.is_dir():
        return _in_folder(place)
    if not place.is_file():
        names = visible_names(place.parent)
        why = near_miss(place.name, names) if names else "its folder is missing or empty"
        raise SourceError(f"no such file: {data}; {why}", hint="correct the path")
    return [place.resolve()]


def _in_folder(folder: Path) -> list[Path]:
    """The tables in a folder and those below it; the folder itself if it has none: then it may have pictures."""
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder))]
    found = sorted(path.resolve() for path in files if path.name.lower().endswith(TABLES))
    kinds = sorted({path.suffix.lower() for path in found})
    if len(kinds) > 1:
        raise SourceError(
            f"the folder has files of several kinds ({', '.join(kinds)})", hint=f"name one kind: '{folder}/*{kinds[0]}'"
        )
    return found or [folder.resolve()]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _exported(uri: str, read: ReadConfig | None, to: Path, project: Project, report: Report) -> Path:
    if not to.is_file():
        report(f"reading {redacted(uri)}")
        with atomic_write(to) as temporary:
            databases.export(uri, read, temporary, project.root)
    return to


def _fetched(uri: str, folder: Path, project: Project, report: Report) -> Path:
    kept = sorted(path for path in folder.glob("[!.]*") if path.is_file()) if folder.is_dir() else []
    if kept:
        return kept[0]
    report(f"fetching {redacted(uri)}")
    return fetch(uri, None, folder, project.root)


def _own_hint(hint: str | None) -> str | None:
    """The hint of a source's error, which names the fields of a recipe."""
    if hint is None:
        return None
    hint = hint.replace("data.source in the recipe", OPTION).replace("data.source", OPTION)
    return hint.replace("data.read.query", "--query").replace("data.read.table", "--table")


def _state(path: Path) -> tuple[int, int]:
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()), 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _hash(path: Path) -> str:
    if path.is_dir():
        names = sorted((str(one.relative_to(path)), one.stat().st_size) for one in path.rglob("*") if one.is_file())
        return hashlib.sha256(repr(names).encode()).hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
