"""How the wheel is built: one package at its top, `headrace`, so that nothing in site-packages can have the same name.

pyproject.toml names these commands. The files that a project needs beside the package go into `headrace/_bundled`; an editable
installation, as `make setup` makes it, finds them in the clone instead (headrace/installation.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

BUNDLED = {
    "bentos": "code/bentos",
    "flows": "repository/flows",
    "tasks": "repository/tasks",
    "deploy/serving": "repository/deploy/serving",
    "docs/examples": "repository/docs/examples",
    "dvc.yaml": "repository/dvc.yaml",
}
"""By their path in the repository, the place of files and folders in `headrace/_bundled`."""
IN_CLONE = ["flows*", "tasks*", "bentos*"]
"""Packages that an editable installation makes importable too."""


def bundled_files() -> dict[str, str]:
    """Files in the repository, relative to it, each with its place in the wheel."""
    found = {}
    for name, place in BUNDLED.items():
        source = Path(name)
        for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
            if "__pycache__" not in file.parts:
                found[file.as_posix()] = (Path("headrace/_bundled") / place / file.relative_to(source)).as_posix()
    return found


class BuildPy(build_py):
    """Adds the bundled files to the wheel, and to the source distribution from which a wheel can be built."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)  # an earlier build may have left modules that no longer exist
        super().run()
        for source, place in bundled_files().items():
            target = Path(self.build_lib) / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *bundled_files(), Path(__file__).relative_to(Path.cwd()).as_posix()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        found = list(super().get_outputs(include_bytecode))
        return found if self.editable_mode else [*found, *(str(Path(self.build_lib) / p) for p in bundled_files().values())]


class EditableWheel(editable_wheel):
    """Makes all packages of the clone importable, not only those of the wheel."""

    def run(self) -> None:
        self.distribution.packages = [*self.distribution.packages, *find_packages(include=IN_CLONE)]
        super().run()
