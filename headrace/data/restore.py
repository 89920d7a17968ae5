"""Restores the data of an earlier version from DVC's cache, by the hash that is recorded with its model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headrace.data.versions import data_version, fetch_files, open_repo
from headrace.errors import DataError
from headrace.project import Project


def restore_version(
    recipe_name: str, md5: str, project: Project, folder: Path, hashes: Mapping[str, str] | None = None
) -> None:
    """Copies `data/<recipe>` of the version `md5` into `folder`: from `data/` if that has the version, else from DVC's cache or
    its remote.

    Args:
        hashes: the md5 of each file of the version, by its path, where they are known.

    Raises:
        DataError: none of them has the version.
    """
    files = (
        _from_workspace(recipe_name, md5, project)
        or _from_cache(recipe_name, md5, project)
        or _by_hashes(hashes or {}, md5, project)
    )
    if not files:
        raise DataError(
            f"data version {md5} of {recipe_name} is neither in data/ nor in DVC's cache",
            where=str(project.root / ".dvc" / "cache"),
            hint="dvc push where the data is, then here: dvc fetch --all-commits, and run the same command",
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
        part = _part(entries, recipe_name)
        if part and _digest(part) == md5:
            found = {entry["relpath"]: root / entry["md5"][:2] / entry["md5"][2:] for entry in part}
            if all(path.is_file() for path in found.values()):
                return found
    return {}


def tree_of_version(cache: Path, recipe_name: str, md5: str) -> set[str]:
    """Returns the md5 of the files of a version, and of the lists in DVC's cache that have it; empty if none has."""
    found = set[str]()
    for path in sorted(cache.glob("??/*.dir")):
        for entries in _read_tree(path):
            part = _part(entries, recipe_name)
            if part and _digest(part) == md5:
                found |= {path.parent.name + path.name, *(entry["md5"] for entry in part)}
    return found


def _by_hashes(hashes: Mapping[str, str], md5: str, project: Project) -> dict[str, Path]:
    """Finds the files of a version that no tree in the cache names; those that the cache lacks come from the remote."""
    if _digest([{"md5": value, "relpath": path} for path, value in hashes.items()]) != md5:
        return {}
    with open_repo(project) as repo:
        found = {path: Path(repo.cache.local.oid_to_path(value)) for path, value in hashes.items()}
        if any(not path.is_file() for path in found.values()) and repo.config["core"].get("remote"):
            fetch_files(repo, hashes.values())
    return found if all(path.is_file() for path in found.values()) else {}


def _trees(root: Path) -> Iterator[list[dict[str, str]]]:
    for path in sorted(root.glob("??/*.dir")):
        yield from _read_tree(path)


def _read_tree(path: Path) -> Iterator[list[dict[str, str]]]:
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # half a file, left by a process that was killed
        return
    if isinstance(entries, list) and all({"md5", "relpath"} <= entry.keys() for entry in entries):
        yield entries


def _part(entries: list[dict[str, str]], recipe_name: str) -> list[dict[str, str]]:
    """Returns the entries of `data/<recipe>`, with paths in that folder."""
    return [
        {"md5": entry["md5"], "relpath": entry["relpath"].removeprefix(f"{recipe_name}/")}
        for entry in entries
        if entry["relpath"].startswith(f"{recipe_name}/")
    ]


def _digest(entries: list[dict[str, str]]) -> str:
    """Returns the hash that DVC gives a folder of these files."""
    from dvc_data.hashfile.tree import Tree

    tree = Tree.from_list(entries, hash_name="md5")
    tree.digest()
    return str(tree.hash_info.value)
