"""Whether anything changed since the last completed release, told from names, sizes and times of files alone.

The same trust DVC puts in a file's inode, size and time; here without importing DVC, so that an unchanged release is over
in a second. Any difference, however small, only means that the full path is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from headrace.files import read_json, write_json
from headrace.project import Project
from headrace.settings import Settings

CODE = ("headrace", "flows", "tasks", "bentos", "deploy/serving")


def snapshot(recipe: str, project: Project, settings: Settings) -> str:
    """One hash over what a release of `recipe` depends on, and over what it made."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for path in sorted(_inputs(recipe, project)):
        stat = path.stat()
        digest.update(f"{path.relative_to(project.root)}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def remember(recipe: str, project: Project, settings: Settings) -> None:
    """Keeps the snapshot of a release that is complete."""
    write_json(_kept(recipe, project), {"snapshot": snapshot(recipe, project, settings)})


def is_unchanged(recipe: str, project: Project, settings: Settings) -> bool:
    """Whether files are as they were when the last release completed."""
    kept = read_json(_kept(recipe, project))
    return bool(kept) and kept["snapshot"] == snapshot(recipe, project, settings)


def _kept(recipe: str, project: Project) -> Path:
    return project.state / "released" / f"{recipe}.json"


def _inputs(recipe: str, project: Project) -> Iterator[Path]:
    singles = (project.recipes / f"{recipe}.yaml", project.root / "dvc.yaml", project.root / "requirements.lock")
    yield from (path for path in singles if path.exists())
    for folder in (project.raw(recipe), project.artifacts(recipe), *(project.root / name for name in CODE)):
        yield from (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
