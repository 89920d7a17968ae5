"""Writes a backup while the project serves."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headrace.console import Report, bar
from headrace.errors import Busy
from headrace.project import Project
from headrace.services.backup import places, state
from headrace.services.backup.archive import Header, write_archive
from headrace.services.backup.snapshot import take_snapshot
from headrace.serving.access import audit

MEGABYTE = 1_000_000


def back_up(project: Project, target: str, report: Report) -> dict[str, Any]:
    """Writes a backup of all state that cannot be made again to `target`, a new file or the address of a new object.

    Returns:
        `file`, and the facts of the archive's header.

    Raises:
        UsageError: `target` exists, or cannot be used.
        Busy: another backup of this project is being written.
        DiskFull: no space is left for the archive, or for copies of the databases; no partial file stays.
    """
    project.locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(project.locks / "backup.lock", timeout=0):
            return _back_up(project, target, report)
    except Timeout:
        raise Busy("another backup of this project is being written", hint="wait until it is done") from None


def _back_up(project: Project, target: str, report: Report) -> dict[str, Any]:
    snapshot = project.state / "snapshot"
    opened = places.new_object(target) if places.is_address(target) else places.new_file(Path(target).absolute())
    _remove(snapshot)  # of a backup that was killed
    try:
        with opened as stream:
            take_snapshot(project, snapshot, report)
            header = _header(project, snapshot)
            report(f"{header.files:,} files, {header.bytes / MEGABYTE:,.1f} MB")
            with bar("archive", max(1, header.bytes // MEGABYTE)) as shown:
                write_archive(snapshot, header, stream, lambda done: shown.update(done // MEGABYTE))
    finally:
        _remove(snapshot)
    audit.record(project, "backup", {"file": target, "files": header.files, "bytes": header.bytes})
    return {"file": target, **header.model_dump()}


def _header(project: Project, snapshot: Path) -> Header:
    sizes = [path.stat().st_size for path in snapshot.rglob("*") if path.is_file()]
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Header(made_at=made_at, root=str(project.root), git_commit=state.commit(project), files=len(sizes), bytes=sum(sizes))


def _remove(snapshot: Path) -> None:
    if snapshot.exists():
        for path in [snapshot, *(path for path in snapshot.rglob("*") if path.is_dir())]:
            path.chmod(0o700)
        shutil.rmtree(snapshot)
