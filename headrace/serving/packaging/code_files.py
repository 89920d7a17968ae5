"""Lists the files of this repository that go into a bento."""

from __future__ import annotations

import hashlib
from pathlib import Path

import headrace
from headrace.plugins import add_to_import_path, code_files, custom_sources

CODE = Path(headrace.__file__).resolve().parent.parent
SERVING = CODE / "deploy" / "serving"
REQUIREMENTS = SERVING / "requirements-serving.txt"
SHARED = (CODE / "headrace" / "__init__.py", CODE / "headrace" / "errors.py")
"""Modules outside of `headrace.runtime` that it needs."""


def served_files(served_by: str, root: Path) -> dict[str, Path]:
    """Maps paths in the bento's `src` to files: the service, and the code that it shares with training.

    Args:
        served_by: `module:Class` of the contract; a custom class, in the project at `root`, adds its file or package.
    """
    files = [*SHARED, *code_files(CODE / "headrace" / "runtime"), *code_files(CODE / "bentos")]
    ours = {file.relative_to(CODE).as_posix(): file for file in files} | {REQUIREMENTS.name: REQUIREMENTS}
    if served_by.partition(".")[0] == "bentos":
        return ours
    add_to_import_path(root)
    own = [file for source in custom_sources([served_by], root) for file in code_files(source)]
    return ours | {file.relative_to(root.resolve()).as_posix(): file for file in own}


def short_digest(parts: dict[str, bytes]) -> str:
    """Eight hex digits of the sha256 over names and contents, whatever their order."""
    total = hashlib.sha256()
    for name in sorted(parts):
        total.update(f"{name}\0{len(parts[name])}\0".encode())
        total.update(parts[name])
    return total.hexdigest()[:8]
