"""Repairs DVC's own files. DVC writes them in place, so a kill or a full disk in that instant leaves half a file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from headrace.errors import DiskFull
from headrace.files import write_with
from headrace.permissions import tracked_mode
from headrace.project import Project

if TYPE_CHECKING:
    from dvc.repo import Repo


def repair_lock_file(repo: Repo, project: Project) -> None:
    """Keeps a copy of a valid `dvc.lock`, and replaces an invalid one by the copy.

    Stages whose entries are lost that way run again, or come from DVC's cache.
    """
    from dvc.lock import LockError

    path, copy = project.root / "dvc.lock", project.state / "dvc.lock"
    content = path.read_bytes() if path.exists() else None
    if content is None:
        return
    if _is_valid(content):
        if not copy.exists() or copy.read_bytes() != content:
            with contextlib.suppress(DiskFull):
                write_with(copy, lambda temporary: temporary.write_bytes(content))
        return
    with contextlib.suppress(LockError), repo.lock:  # the holder of the lock may be writing it at this moment
        if _is_valid(path.read_bytes()):
            return
        if copy.exists():
            write_with(path, lambda temporary: temporary.write_bytes(copy.read_bytes()), tracked_mode(path))
        else:
            path.unlink()


def remove_damaged_rwlock(repo: Repo) -> None:
    """Removes DVC's table of readers and writers (`.dvc/tmp/rwlock`) if it is damaged: DVC would refuse all operations.

    The processes in it were killed with its writer, or register again.
    """
    import json

    from dvc.lock import LockError, make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    def is_damaged() -> bool:
        try:
            json.loads(table.read_bytes())
        except FileNotFoundError:
            return False
        except ValueError:
            return True
        return False

    if repo.tmp_dir is None:
        return
    table, lock = Path(repo.tmp_dir) / RWLOCK_FILE, Path(repo.tmp_dir) / RWLOCK_LOCK
    if is_damaged():
        hardlink = repo.config["core"].get("hardlink_lock", False)
        # the holder of the lock may be writing the table at this moment
        with contextlib.suppress(LockError), make_lock(str(lock), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
            if is_damaged():
                table.unlink()


def _is_valid(content: bytes) -> bool:
    from dvc.dvcfile import Lockfile
    from dvc.utils.strictyaml import YAMLValidationError

    try:
        found: Any = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)
        Lockfile.validate(found)
    except (yaml.YAMLError, YAMLValidationError, UnicodeDecodeError):
        return False
    return bool(found)
