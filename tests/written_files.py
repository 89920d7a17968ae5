"""Which files of a project other users of the machine could read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from headrace.permissions import DVC_PROTECTED
from headrace.project import Project

FOR_CONTAINERS = (".headrace/token-keys", ".headrace/usage/*", ".headrace/sockets/*-v*-????", ".headrace/quotas/store")
"""What containers read or write as another user; the folders above them are private."""


def readable_by_others(project: Project) -> list[str]:
    """Paths in the folders that the product writes to, with their mode, that group or others have a right to."""
    folders = [project.state, project.data, project.mlruns, project.root / "artifacts", project.root / ".dvc" / "cache"]
    entries = [entry for folder in folders if folder.exists() for entry in (folder, *_below(folder))]
    found = {path.relative_to(project.root): stat.S_IMODE(path.lstat().st_mode) for path in entries if not path.is_symlink()}
    return [f"{path} {mode:o}" for path, mode in found.items() if mode & 0o077 and not _is_allowed(path, mode)]


def _below(folder: Path) -> list[Path]:
    return [Path(root, name) for root, names, files in os.walk(folder) for name in (*names, *files)]


def _is_allowed(path: Path, mode: int) -> bool:
    if path.is_relative_to(".dvc/cache"):
        return mode == DVC_PROTECTED
    return any(place.match(pattern) for place in (path, *path.parents) for pattern in FOR_CONTAINERS)
