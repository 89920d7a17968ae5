"""Which files of this repository go into a bento, and where they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

import headrace
from headrace.plugins import code_files, custom_sources, importable

CODE = Path(headrace.__file__).resolve().parent.parent
SERVING = CODE / "deploy" / "serving"
REQUIREMENTS = SERVING / "requirements-serving.txt"
SHARED = (CODE / "headrace" / "__init__.py", CODE / "headrace" / "errors.py")
"""Modules of `headrace` that the package `headrace.runtime` needs."""


def served_files(served_by: str, root: Path) -> dict[str, Path]:
    """Path inside the bento's `src` to the file itself: the service, and what it shares with training.

    Args:
        served_by: the contract's; a class of a user's own, in the project at `root`, brings the file or package it lies in.
    """
    files = [*SHARED, *code_files(CODE / "headrace" / "runtime"), *code_files(CODE / "bentos")]
    ours = {file.relative_to(CODE).as_posix(): file for file in files} | {REQUIREMENTS.name: REQUIREMENTS}
    if served_by.partition(".")[0] == "bentos":
        return ours
    importable(root)
    own = [file for source in custom_sources([served_by], root) for file in code_files(source)]
    return ours | {file.relative_to(root.resolve()).as_posix(): file for file in own}


def digest(parts: dict[str, bytes]) -> str:
    """Eight hex digits of the sha256 over names and contents, independent of the order they come in."""
    total = hashlib.sha256()
    for name in sorted(parts):
        total.update(f"{name}\0{len(parts[name])}\0".encode())
        total.update(parts[name])
    return total.hexdigest()[:8]
