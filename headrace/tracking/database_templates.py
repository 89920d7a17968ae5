"""Migrated, empty SQLite databases of MLflow and Prefect: made once per installation, copied into each new project.

A server that begins with no database runs all its migrations, which takes seconds and always gives the same tables.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from headrace.files import atomic_write


def template_path(package: str) -> Path:
    """The template for the installed version of a package, inside the virtual environment."""
    return Path(sys.prefix) / "share" / "headrace" / f"{package}-{version(package)}.db"


def make_template(package: str, create: Callable[[Path], object]) -> Path | None:
    """Makes the template of a package unless it exists. None when the environment's folder is not writable.

    Args:
        create: writes the database to the path that it is given.
    """
    template = template_path(package)
    if not template.exists():
        try:
            with atomic_write(template) as beside:
                create(beside)
        except OSError:
            return None
    return template


def copy_template(package: str, path: Path, adapt: Callable[[Path], object] = lambda copied: None) -> bool:
    """Copies the template of a package to `path`, whole or not at all. False without a template, or when `path` exists.

    Args:
        adapt: changes the copy before it appears at `path`.
    """
    template = template_path(package)
    if path.exists() or not template.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(template, beside)
        adapt(beside)
        with beside.open("rb") as handle:
            os.fsync(handle.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(beside)  # unlike a rename it replaces no database that another process has made meanwhile
            return True
        return False
    finally:
        beside.unlink(missing_ok=True)
