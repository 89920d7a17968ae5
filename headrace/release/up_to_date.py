"""Whether anything changed since the last complete release, by names, sizes and times of files alone.

DVC trusts a file's inode, size and time in the same way. This does not import DVC, so that an unchanged release takes a
second. Any difference, however small, only means that all steps are taken.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from headrace.data.pictures.sources import local_inputs
from headrace.data.sources.addresses import is_local, local_files
from headrace.files import read_cached_json, write_json
from headrace.importing.addresses import local_path
from headrace.installation import path_of
from headrace.models.pretrained_base import FILES
from headrace.plugins import code_files, custom_sources
from headrace.project import Project
from headrace.recipe.recipe import Recipe

FLOWS = ("flows", "tasks")
"""Code that each project has."""
OF_EVENTS = {"notify", "notify_on", "webhooks", "webhook_days"}
"""Settings of who is notified of a release, which change nothing about it."""
INSTALLED = ("headrace", "bentos", "deploy/serving")
"""Code that only a clone has; that of other projects is where Headrace is installed."""


def snapshot(recipe: Recipe, project: Project) -> str:
    """One hash over the files that a release of `recipe` depends on, and over its outputs."""
    digest = hashlib.sha256(project.settings.model_dump_json(exclude=OF_EVENTS).encode())
    for path in sorted({*_inputs(recipe, project), *_outputs(recipe, project)}):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed: another command is running
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def remember(recipe: Recipe, project: Project, began_ns: int) -> None:
    """Stores the snapshot of a complete release, unless a person changed a file during it: the change was not released.

    Args:
        began_ns: when the release began, in nanoseconds of the file system's clock.
    """
    if any(path.stat().st_mtime_ns > began_ns for path in _inputs(recipe, project)):
        _snapshot_file(recipe, project).unlink(missing_ok=True)
    else:
        write_json(_snapshot_file(recipe, project), {"snapshot": snapshot(recipe, project)})


def forget(recipe: Recipe, project: Project) -> None:
    """Makes the next release go through all its steps, although no file has changed."""
    _snapshot_file(recipe, project).unlink(missing_ok=True)


def is_unchanged(recipe: Recipe, project: Project) -> bool:
    """Whether all files are as they were at the end of the last complete release."""
    kept = read_cached_json(_snapshot_file(recipe, project))
    return bool(kept) and kept["snapshot"] == snapshot(recipe, project)


def _snapshot_file(recipe: Recipe, project: Project) -> Path:
    return project.state / "released" / f"{recipe.name}.json"


def _inputs(recipe: Recipe, project: Project) -> Iterator[Path]:
    """The files that people write: the recipe, its source where that is a file, the environment and the code."""
    singles = [project.recipes / f"{recipe.name}.yaml", project.root / "requirements.lock"]
    if recipe.base is not None and (path := local_path(recipe.base.source, project)) is not None:
        singles.extend(path.with_name(name) for name in FILES)
    if recipe.imported is not None and (path := local_path(recipe.imported.source, project)) is not None:
        singles.append(path)
    elif recipe.data.pictures is not None:
        singles.extend(local_inputs(recipe, project))
    for file in recipe.data.files if recipe.data.pictures is None and recipe.imported is None else ():
        if is_local(file.uri):
            singles.extend(local_files(file.uri, project.root))
    yield from (path for path in singles if path.is_file())
    yield from _files(project.root / name for name in FLOWS)
    yield from _files(project.root / name if project.is_clone else path_of(name) for name in INSTALLED)
    for source in custom_sources(recipe.custom_classes, project.root):
        yield from code_files(source)


def _outputs(recipe: Recipe, project: Project) -> Iterator[Path]:
    """Data, artifacts, and the list of recipes in dvc.yaml."""
    yield from (path for path in [project.root / "dvc.yaml"] if path.is_file())
    yield from _files((project.raw_data(recipe.name), project.artifacts(recipe.name)))


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
