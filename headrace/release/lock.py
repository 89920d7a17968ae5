"""The lock of a release: one process at a time releases a recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headrace.errors import Busy
from headrace.files import read_cached_json, write_json
from headrace.project import Project


@contextmanager
def release_lock(recipe: str, project: Project) -> Iterator[None]:
    """Holds the right to release `recipe`. The operating system frees it when the process that holds it is killed.

    Raises:
        Busy: another process holds it.
    """
    with held_lock(_lock_file(recipe, project), lambda holder: _busy(recipe, holder)):
        yield


@contextmanager
def held_lock(path: Path, busy: Callable[[dict[str, Any]], Busy]) -> Iterator[None]:
    """Holds the lock at `path`, and writes who holds it beside it.

    Args:
        busy: makes the error from the `pid` and `since` of the process that holds it.

    Raises:
        Busy: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_suffix(".json")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise busy(_read_holder(holder)) from None
    try:
        write_json(holder, {"pid": os.getpid(), "since": time.strftime("%H:%M:%S")})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def require_no_other_release(recipe: str, project: Project) -> None:
    """Checks that no other process releases `recipe`.

    Raises:
        Busy: another process does.
    """
    holder = _read_holder(_holder_file(recipe, project))
    if holder.get("pid") == os.getpid():
        return
    try:
        with FileLock(_lock_file(recipe, project), timeout=0):
            return
    except Timeout:
        raise _busy(recipe, holder) from None


def is_held(recipe: str, project: Project) -> bool:
    """Whether a process releases `recipe` now, this one included."""
    try:
        require_no_other_release(recipe, project)
    except Busy:
        return True
    return bool(_read_holder(_holder_file(recipe, project)).get("pid") == os.getpid())


def began_ns(recipe: str, project: Project) -> int:
    """When the release that holds the lock began, in nanoseconds of the file system's clock; 0 when none is running."""
    holder = _holder_file(recipe, project)
    return holder.stat().st_mtime_ns if holder.exists() else 0


def _busy(recipe: str, holder: dict[str, Any]) -> Busy:
    return Busy(
        f"{recipe} is being released by process {holder.get('pid', '?')} since {holder.get('since', '?')}",
        hint="wait until it is done (headrace status), or stop that process; then run the same command",
    )


def _lock_file(recipe: str, project: Project) -> Path:
    return project.locks / f"release-{recipe}.lock"


def _holder_file(recipe: str, project: Project) -> Path:
    """The process that holds the lock and the time at which it took it."""
    return project.locks / f"release-{recipe}.json"


def _read_holder(path: Path) -> dict[str, Any]:
    return read_cached_json(path) or {}
