"""Lists the files of this repository that go into a bento."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from headrace.installation import REPOSITORY, path_of
from headrace.plugins import add_to_import_path, code_files, custom_sources

CODE = REPOSITORY
SERVING = CODE / "deploy" / "serving"
REQUIREMENTS = SERVING / "requirements-serving.txt"
SERVED = ("headrace/__init__.py", "headrace/errors.py", "headrace/runtime", "bentos")
"""The service, and what it shares with training."""


def served_files(served_by: str, root: Path) -> dict[str, Path]:
    """Maps paths in the bento's `src` to files: the service, and the code that it shares with training.

    Args:
        served_by: `module:Class` of the contract; a custom class, in the project at `root`, adds its file or package.
    """
    ours = {path: file for name in SERVED for path, file in _named_files(name)} | {REQUIREMENTS.name: REQUIREMENTS}
    if served_by.partition(".")[0] == "bentos":
        return ours
    add_to_import_path(root)
    own = [file for source in custom_sources([served_by], root) for file in code_files(source)]
    return ours | {file.relative_to(root.resolve()).as_posix(): file for file in own}


def _named_files(name: str) -> Iterator[tuple[str, Path]]:
    """The Python files at a path in the repository, wherever it is installed, each by its path there."""
    source = path_of(name)
    for file in code_files(source):
        yield Path(name, file.relative_to(source)).as_posix(), file


def short_digest(parts: dict[str, bytes]) -> str:
    """Eight hex digits of the sha256 over names and contents, whatever their order."""
    total = hashlib.sha256()
    for name in sorted(parts):
        total.update(f"{name}\0{len(parts[name])}\0".encode())
        total.update(parts[name])
    return total.hexdigest()[:8]
