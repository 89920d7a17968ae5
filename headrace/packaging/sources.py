"""Which files of this repository go into a bento, and where they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

import headrace

CODE = Path(headrace.__file__).resolve().parent.parent
SERVING = CODE / "deploy" / "serving"
REQUIREMENTS = SERVING / "requirements-serving.txt"
SHARED = ("__init__.py", "contract.py", "text.py")
"""Light modules of `headrace` that training and serving have in common."""


def served_files() -> dict[str, Path]:
    """Path inside the bento's `src` to the file itself: the service, and what it shares with training."""
    files = [*sorted((CODE / "bentos").glob("*.py")), *(CODE / "headrace" / name for name in SHARED)]
    return {file.relative_to(CODE).as_posix(): file for file in files} | {REQUIREMENTS.name: REQUIREMENTS}


def digest(parts: dict[str, bytes]) -> str:
    """Eight hex digits of the sha256 over names and contents, independent of the order they come in."""
    total = hashlib.sha256()
    for name in sorted(parts):
        total.update(f"{name}\0{len(parts[name])}\0".encode())
        total.update(parts[name])
    return total.hexdigest()[:8]
