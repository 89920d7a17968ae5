"""Restores the data of an earlier version from DVC's cache, by the hash that is recorded with its model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.data.versions import data_version, open_repo
from headrace.errors import DataError
from headrace.project import Project


def restore_version(recipe_name: str, md5: str, project: Project, folder: Path) -> None:
    """Copies `data/<recipe>` of the version `md5` into `folder`: from `data/` if that has the version, else from DVC's cache.

    Raises:
        DataError: neither has the version.
    """
    files = _from_workspace(recipe_name, md5, project) or _from_cache(recipe_name, md5, project)
    if not files:
        raise DataError(
            f"data version {md5} of {recipe_name} is neither in data/ nor in DVC's cache",
            where=str(project.root / ".dvc" / "cache"),
            hint="if the project has a DVC remote: dvc fetch --all-commits, then run the same command",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)


def _from_workspace(recipe_name: str, md5: str, project: Project) -> dict[str, Path]:
    try:
        if data_version(project, recipe_name).md5 != md5:
            return {}
    except DataError:  # no data at the moment
        return {}
    raw = project.raw_data(recipe_name)
    return {path.relative_to(raw).as_posix(): path for path in raw.rglob("*") if path.is_file()}


def _from_cache(recipe_name: str, md5: str, project: Project) -> dict[str, Path]:
    """Finds the version in DVC's trees of `data/`: a recipe's version is the hash of its part of such a tree."""
    with open_repo(project) as repo:
        root = Path(repo.cache.local.path)
    for entries in _trees(root):
        part = [
            {"md5": entry["md5"], "relpath": entry["relpath"].removeprefix(f"{recipe_name}/")}
            for entry in entries
            if entry["relpath"].startswith(f"{recipe_name}/")
        ]
        if part and _digest(part) == md5:
            found = {entry["relpath"]: root / entry["md5"][:2] / entry["md5"][2:] for entry in part}
            if all(path.is_file() for path in found.values()):
                return found
    return {}


def _trees(root: Path) -> Iterator[list[dict[str, str]]]:
    for path in sorted(root.glob("??/*.dir")):
        try:
            entries: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # half a file, left by a process that was killed
            continue
        if isinstance(entries, list) and all({"md5", "relpath"} <= entry.keys() for entry in entries):
            yield entries


def _digest(entries: list[dict[str, str]]) -> str:
    """Returns the hash that DVC gives a folder of these files."""
    from dvc_data.hashfile.tree import Tree

    tree = Tree.from_list(entries, hash_name="md5")
    tree.digest()
    return str(tree.hash_info.value)
