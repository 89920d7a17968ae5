"""Which modules of Headrace the stages of a project consist of, as files for DVC to depend on, where Headrace is installed
outside of the project.

The dvc.yaml of a clone lists the modules of each stage by their paths. A path into site-packages would differ from machine to
machine, so the dvc.yaml of any other project has the stage `installed_code`, which runs at each `dvc repro` and writes their
names and hashes; the other stages depend on these files. A newer Headrace thus repeats the stages whose code it changes, and
no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from headrace import permissions
from headrace.files import read_cached_json, write_json
from headrace.installation import path_of
from headrace.plugins import code_files
from headrace.project import Project, find_project
from headrace.tracking.provenance import sha256

FOLDER = Path("artifacts") / "installed_code"
"""Relative to the project. No recipe has this name: names have no underscore."""
PARTS = {"task_type": ["headrace/task_types"], "model": ["headrace/models"]}
"""What a recipe without a class of its own depends on beside the code of the stage."""


def file_of(part: str) -> Path:
    """The file with the code of a stage, or of one of `PARTS`; relative to the project."""
    return FOLDER / f"{part}.json"


def is_code(dependency: str) -> bool:
    """Whether a dependency in the dvc.yaml of a clone is code of Headrace."""
    return dependency.startswith(("headrace/", "bentos/"))


def write_installed_code(project: Project) -> None:
    """Writes the sha256 of each module of each stage, where they changed. Takes some 10 ms."""
    hashes: dict[str, str] = {}
    for part, names in {**_stages(), **PARTS}.items():
        found = {path: _hash(path, file, hashes) for path, file in _modules(names)}
        path = project.root / file_of(part)
        if read_cached_json(path) != found:
            write_json(path, found)


def _stages() -> dict[str, list[str]]:
    """The code of each stage, as the dvc.yaml of Headrace's repository lists it."""
    content: dict[str, Any] = yaml.safe_load(path_of("dvc.yaml").read_text(encoding="utf-8"))
    wanted = {name: [dep for dep in stage["do"].get("deps", []) if is_code(dep)] for name, stage in content["stages"].items()}
    return {name: deps for name, deps in wanted.items() if deps}


def _modules(names: Iterable[str]) -> list[tuple[str, Path]]:
    """The Python files at these paths of the repository, each with its path there; sorted."""
    found = {
        Path(name, file.relative_to(path_of(name))).as_posix(): file for name in names for file in code_files(path_of(name))
    }
    return sorted(found.items())


def _hash(path: str, file: Path, known: dict[str, str]) -> str:
    if path not in known:
        known[path] = sha256(file)
    return known[path]


if __name__ == "__main__":
    permissions.set_private_umask()
    write_installed_code(find_project())
