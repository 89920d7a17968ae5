"""A consistent copy of a project's state, made within seconds while it serves and releases.

Files that are never changed in place are hard links; databases are copied with SQLite's backup API; what is appended to is
copied up to its last complete line. What refers to something is copied before it, so that each reference in the snapshot can be
followed: the journal before MLflow's database, that before its artifacts, `data.dvc` before the data.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from headrace import append_log
from headrace.console import Report
from headrace.data.commit import exclusive
from headrace.errors import HeadraceError, ServiceError
from headrace.project import Project
from headrace.release import history, journal
from headrace.runtime.usage import DATABASE
from headrace.services.backup import state
from headrace.serving.access import audit
from headrace.tracking.schema_migration import copy_database

SQLITE = b"SQLite format 3\0"
IN_PLACE = (".jsonl", ".bin")
"""Endings of files that are changed in place: copied instead of linked."""
TEMPORARY = (".lock", ".part", "-wal", "-shm", "-journal", ".tmp")
ATTEMPTS = 20


def take_snapshot(project: Project, into: Path, report: Report) -> None:
    """Copies all state of `project` to the new folder `into`, under the same relative paths.

    Raises:
        DamagedFile: a database cannot be read.
        Busy: another process changes the data for too long.
    """
    into.mkdir(parents=True, mode=0o700)
    with append_log.locked(journal.log(project)), append_log.locked(audit.log(project)):  # logs and anchors match
        for path in (project.journal, project.audit_log, *_log_ends(project)):
            _copy_tree(project, path, into)
    _copy_tree(project, project.mlruns, into)
    for path in state.kept_in_state_folder(project):
        if path not in _log_ends(project):
            _copy_kept(project, path, into)
    _leave_out_folded(into / project.usage.relative_to(project.root))
    _copy_tree(project, project.state / "prefect" / "prefect.db", into)
    for path in _bentos(project, report):
        _copy_tree(project, path, into)
    with exclusive(project, "data"):
        for name in state.FILES:
            _copy_tree(project, project.root / name, into)
        for folder in (project.recipes, project.data, project.root / ".dvc" / "cache"):
            _copy_tree(project, folder, into)
    for name in state.files_outside_git(project):
        if not state.is_backup(project.root / name):
            _copy_tree(project, project.root / name, into)


def _log_ends(project: Project) -> tuple[Path, Path]:
    """Folders with what the ends of logs are compared with."""
    return journal.log(project).anchor.parent, project.keys


def _copy_kept(project: Project, path: Path, into: Path) -> None:
    if path.name == "batches":
        for folder in sorted(path.glob("[!.]*")):
            _copy_batch(project, folder, into)
    elif path.name == "usage":  # counters before the database that they are moved to: none is lost
        for folder in sorted(path.iterdir()):
            if folder.name != DATABASE:
                _copy_tree(project, folder, into)
        _copy_tree(project, path / DATABASE, into)
    else:
        _copy_tree(project, path, into)


def _copy_batch(project: Project, folder: Path, into: Path) -> None:
    """Copies a batch at one moment: again, while its progress changes or files go.

    Raises:
        ServiceError: it never stood still.
    """
    copy = into / folder.relative_to(project.root)
    for _ in range(ATTEMPTS):
        before = _read(folder / "progress.json")
        with contextlib.suppress(FileNotFoundError):
            _copy_tree(project, folder, into, is_strict=True)
            if folder.exists() and _read(folder / "progress.json") == before:
                return
        shutil.rmtree(copy, ignore_errors=True)
        if not folder.exists():
            return
    raise ServiceError(f"batch {folder.name} changes too fast to be copied", where=str(folder), hint="the same command again")


def _leave_out_folded(usage: Path) -> None:
    """Removes counters that the copied database has: their names are remembered there for a day only."""
    if not (usage / DATABASE).exists():
        return
    connection = sqlite3.connect(usage / DATABASE)
    try:
        folded = [file for (file,) in connection.execute("SELECT file FROM folded")]
    finally:
        connection.close()
    for file in folded:
        (usage / file).unlink(missing_ok=True)


def _bentos(project: Project, report: Report) -> Iterator[Path]:
    """Folders, in BentoML's stores, of all bentos that serve by the journal or that it may roll back to."""
    try:
        entries = [entry for entry in journal.entries(project) if entry.event in (*history.IN_FORCE, "rebuilt")]
        tags = {str(entry.facts.get("bento", "")) for entry in entries}
    except HeadraceError as error:
        report(f"{error.headline}; it is in the backup as it is, with all bentos")
        tags = {f"{p.parent.name}:{p.name}" for p in (project.bentoml_home / "bentos").glob("*/*") if p.is_dir()}
    for tag in sorted(tags):
        name, _, version = tag.partition(":")
        for store in ("models", "bentos"):
            place = project.bentoml_home / store / name
            if version and (place / version).is_dir():
                yield from (place / version, place / "latest")


def _copy_tree(project: Project, source: Path, into: Path, is_strict: bool = False) -> None:
    """Copies a file or folder to its relative path below `into`; what is there already stays.

    Args:
        is_strict: whether a file that goes meanwhile is an error instead of left out.

    Raises:
        FileNotFoundError: only with `is_strict`.
    """
    for path in _walk(source, frozenset()):
        place = into / path.relative_to(project.root)
        try:
            if path.is_dir():
                _make_folder(project, path, into)
            elif not place.exists():
                _make_folder(project, path.parent, into)
                _copy_file(path, place)
        except FileNotFoundError:
            if is_strict:
                raise


def _walk(source: Path, above: frozenset[str]) -> Iterator[Path]:
    """Yields folders and regular files, through symbolic links; not those that lead back up."""
    try:
        mode = source.stat().st_mode
    except FileNotFoundError:  # gone, or a link to nowhere
        return
    if stat.S_ISREG(mode) and not source.name.endswith(TEMPORARY):
        yield source
    elif stat.S_ISDIR(mode) and (real := os.path.realpath(source)) not in above and source.name != "__pycache__":
        yield source
        for path in _listed(source):
            yield from _walk(path, above | {real})


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:  # removed meanwhile
        return []


def _make_folder(project: Project, folder: Path, into: Path) -> None:
    """Makes the copy of a folder, and of those above it, with their modes."""
    relative = folder.relative_to(project.root)
    for part in [*reversed(relative.parents), relative]:
        if part.parts and not (into / part).is_dir():
            (into / part).mkdir()
            (into / part).chmod(stat.S_IMODE((project.root / part).stat().st_mode) | 0o700)


def _copy_file(path: Path, place: Path) -> None:
    with path.open("rb") as handle:
        is_database = handle.read(len(SQLITE)) == SQLITE
    if is_database:
        copy_database(path, place)
    elif path.suffix in IN_PLACE:
        content = path.read_bytes()
        place.write_bytes(content[: content.rfind(b"\n") + 1] if path.suffix == ".jsonl" else content)
    else:
        _link(path.resolve(), place)
        return
    shutil.copystat(path, place)


def _link(path: Path, place: Path) -> None:
    """Links or, where the file system has no links, or on another disk, copies."""
    try:
        os.link(path, place)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(path, place)


def _read(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""
