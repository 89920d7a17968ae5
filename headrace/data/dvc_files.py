"""DVC's own files stay whole. It writes them in place: a kill or a full disk in that instant would leave half of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from headrace.errors import DiskFull
from headrace.files import write_with
from headrace.project import Project

if TYPE_CHECKING:
    from dvc.repo import Repo


def keep_whole(repo: Repo, project: Project) -> None:
    """Keeps a copy of a `dvc.lock` that is whole, and puts the copy back for one that is not.

    Stages whose entries are lost that way run again, or come from DVC's cache; nothing wrong is believed.
    """
    from dvc.lock import LockError

    path, copy = project.root / "dvc.lock", project.state / "dvc.lock"
    content = path.read_bytes() if path.exists() else None
    if content is None:
        return
    if _is_whole(content):
        if not copy.exists() or copy.read_bytes() != content:
            with contextlib.suppress(DiskFull):
                write_with(copy, lambda beside: beside.write_bytes(content))
        return
    with contextlib.suppress(LockError), repo.lock:  # who holds the lock may be writing it at this moment
        if _is_whole(path.read_bytes()):
            return
        if copy.exists():
            write_with(path, lambda beside: beside.write_bytes(copy.read_bytes()))
        else:
            path.unlink()


def drop_torn_table(repo: Repo) -> None:
    """Removes DVC's table of who reads and writes what (`.dvc/tmp/rwlock`) where it was cut: DVC would refuse all work.

    Those that it named were killed with its writer, or say so anew.
    """
    import json

    from dvc.lock import LockError, make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    def is_torn() -> bool:
        try:
            json.loads(table.read_bytes())
        except FileNotFoundError:
            return False
        except ValueError:
            return True
        return False

    if repo.tmp_dir is None:
        return
    table, guard = Path(repo.tmp_dir) / RWLOCK_FILE, Path(repo.tmp_dir) / RWLOCK_LOCK
    if is_torn():
        hardlink = repo.config["core"].get("hardlink_lock", False)
        # who holds the guard may be writing the table at this moment
        with contextlib.suppress(LockError), make_lock(str(guard), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
            if is_torn():
                table.unlink()


def _is_whole(content: bytes) -> bool:
    from dvc.dvcfile import Lockfile
    from dvc.utils.strictyaml import YAMLValidationError

    try:
        found: Any = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)
        Lockfile.validate(found)
    except (yaml.YAMLError, YAMLValidationError, UnicodeDecodeError):
        return False
    return bool(found)
