"""Restores a backup into a clone whose services are stopped.

The archive is unpacked beside the project's files and compared with its checksums before anything of the project is touched.
Then files are only renamed: the old state into a folder of its own, the new one into its place. If that fails, it is undone.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from headrace.console import Report, bar
from headrace.errors import Busy, DiskFull, UsageError
from headrace.files import is_disk_full, write_text
from headrace.project import Project
from headrace.services.backup import places, state
from headrace.services.backup.archive import Header, Manifest, open_archive
from headrace.serving.access import audit
from headrace.serving.replicas import supervisor
from headrace.tracking.locations import move_locations

MEGABYTE = 1_000_000


def restore(project: Project, source: str, is_replacing: bool, report: Report) -> dict[str, Any]:
    """Restores the backup at `source`, a file or an address.

    Args:
        is_replacing: whether existing state is moved aside, instead of being an error.

    Returns:
        `file`, `set_aside` (the folder with the old state, or None), and the facts of the archive's header.

    Raises:
        Busy: services of the project run.
        UsageError: the project has state already, or `source` is not a backup or has a newer format.
        DamagedFile: the backup is damaged; the project is unchanged.
        DiskFull: the project is unchanged.
    """
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "up.lock"):  # `headrace up` waits
        _require_stopped(project)
        if not is_replacing:
            _require_empty(project)
        _remove(project.restoring)
        try:
            with _disk_full_is_an_error(project), places.existing(source) as stream, open_archive(stream, source) as archive:
                header = archive.header
                _require_space(project, header)
                report(f"made {header.made_at} by Headrace {header.headrace}: {header.bytes / MEGABYTE:,.1f} MB")
                with bar("unpack", max(1, header.bytes // MEGABYTE)) as shown:
                    manifest = archive.extract(project.restoring / "files", lambda done: shown.update(done // MEGABYTE))
            set_aside = _Move(project, manifest, is_replacing).run(header)
        except BaseException:
            if not state.is_restore_unfinished(project):
                _remove(project.restoring)
            raise
        _remove(project.restoring)
    if set_aside is not None:
        report(f"the old state is in {set_aside.name}/")
    if header.git_commit and state.commit(project) != header.git_commit:
        report(f"the backup was made at commit {header.git_commit[:12]}; another one is checked out")
    facts = {"file": source, "made_at": header.made_at, "set_aside": set_aside.name if set_aside else None}
    audit.record(project, "restore", facts)
    return {**header.model_dump(), **facts}


def _require_stopped(project: Project) -> None:
    if supervisor.is_up(project) or supervisor.supervised_processes(project):
        raise Busy("services of this project are running", where=str(project.root), hint="headrace down, then the same command")


def _require_empty(project: Project) -> None:
    state.require_restored(project)
    if found := state.existing_state(project):
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise UsageError(
            f"the project has state already: {', '.join(found[:4])}{more}",
            where=str(project.root),
            hint="restore into a fresh clone; or add --replace, which moves the old state into a folder beside it",
        )


def _require_space(project: Project, header: Header) -> None:
    free = shutil.disk_usage(project.root).free
    if free < header.bytes:
        raise DiskFull(
            f"the backup takes {header.bytes / MEGABYTE:,.1f} MB, and {free / MEGABYTE:,.1f} MB are free",
            where=str(project.root),
            hint="free some space, then run the same command",
        )


class _Move:
    """Moves verified files into their places, and undoes it when it fails."""

    def __init__(self, project: Project, manifest: Manifest, is_replacing: bool) -> None:
        self._project, self._manifest, self._is_replacing = project, manifest, is_replacing
        self._files = project.restoring / "files"
        self._aside = _unused(project.root / f"{state.SET_ASIDE}{datetime.now(UTC):%Y%m%d-%H%M%S}")
        self._done: list[tuple[Path, Path]] = []

    def run(self, header: Header) -> Path | None:
        """Returns the folder with what was replaced, None where nothing was."""
        self._require_same_files()
        database = self._files / "mlruns" / "mlflow.db"
        if header.root != str(self._project.root) and database.exists():
            move_locations(database, header.root, str(self._project.root))
        for name, stored in self._manifest.files.items():
            (self._files / name).chmod(stored.mode & 0o777)
        os.sync()
        write_text(self._project.restoring / "moving", self._aside.name + "\n")
        try:
            if self._is_replacing:
                for path in self._replaced():
                    self._rename(path, self._aside / path.relative_to(self._project.root))
            for name in sorted(self._manifest.files):
                self._place(name)
        except BaseException:
            for before, now in reversed(self._done):
                now.rename(before)
            (self._project.restoring / "moving").unlink()
            raise
        for name, mode in self._manifest.folders.items():
            (self._project.root / name).mkdir(parents=True, exist_ok=True)
            (self._project.root / name).chmod(mode & 0o777 | 0o700)
        os.sync()
        (self._project.restoring / "moving").unlink()
        return self._aside if self._aside.exists() else None

    def _require_same_files(self) -> None:
        """Without `--replace`, a file that git does not hold may not be replaced by another one."""
        if self._is_replacing:
            return
        for name in self._manifest.files:
            path = self._project.root / name
            if path.exists() and not self._is_same(name) and not state.is_held_by_git(self._project, name):
                raise UsageError(
                    f"{name} differs from the one in the backup, and git does not hold it",
                    where=str(path),
                    hint="commit it or move it away; or add --replace, which moves it into a folder beside the project's files",
                )

    def _replaced(self) -> list[Path]:
        """All that is moved aside: the folders of state, without locks, which this process holds."""
        project = self._project
        found = [path for path in (project.mlruns, project.data) if path.exists() or path.is_symlink()]
        return found + [path for path in sorted(project.state.iterdir()) if path.name != "locks"]

    def _place(self, name: str) -> None:
        path = self._project.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not self._is_same(name):
            self._rename(path, self._aside / name)
        elif path.exists():
            return
        self._rename(self._files / name, path)

    def _is_same(self, name: str) -> bool:
        """Whether the project has the file already; DVC's cache names files by their content."""
        path = self._project.root / name
        return name.startswith(".dvc/cache/") or (path.is_file() and filecmp.cmp(path, self._files / name, shallow=False))

    def _rename(self, before: Path, now: Path) -> None:
        now.parent.mkdir(parents=True, exist_ok=True)
        if now.is_relative_to(self._aside):
            self._aside.chmod(0o700)
        before.rename(now)
        self._done.append((before, now))


@contextmanager
def _disk_full_is_an_error(project: Project) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        hint = "free some space, then run the same command; the project is unchanged"
        raise DiskFull("no space left to unpack the backup", where=str(project.root), hint=hint) from None


def _unused(folder: Path) -> Path:
    """The folder, or the first of `folder-2`, `folder-3`, … if an earlier restore of this second has it."""
    names = (folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 1000)))
    return next(name for name in names if not name.exists())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
