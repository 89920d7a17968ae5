"""Which files of this repository go into a bento, and where they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

import headrace
from headrace.extensions import code_files, importable, own_sources

CODE = Path(headrace.__file__).resolve().parent.parent
SERVING = CODE / "deploy" / "serving"
REQUIREMENTS = SERVING / "requirements-serving.txt"
SHARED = (
    "__init__.py",
    "batch.py",
    "beam.py",
    "contract.py",
    "counters.py",
    "errors.py",
    "explanation.py",
    "generation.py",
    "graph.py",
    "graphs.py",
    "guard.py",
    "ledger.py",
    "nodes.py",
    "pictures.py",
    "text.py",
)
"""Light modules of `headrace` that training and serving have in common."""


def served_files(served_by: str, root: Path) -> dict[str, Path]:
    """Path inside the bento's `src` to the file itself: the service, and what it shares with training.

    Args:
        served_by: the contract's; a class of a user's own, in the project at `root`, brings the file or package it lies in.
    """
    files = [*sorted((CODE / "bentos").glob("*.py")), *(CODE / "headrace" / name for name in SHARED)]
    ours = {file.relative_to(CODE).as_posix(): file for file in files} | {REQUIREMENTS.name: REQUIREMENTS}
    if served_by.partition(".")[0] == "bentos":
        return ours
    importable(root)
    own = [file for source in own_sources([served_by], root) for file in code_files(source)]
    return ours | {file.relative_to(root.resolve()).as_posix(): file for file in own}


def digest(parts: dict[str, bytes]) -> str:
    """Eight hex digits of the sha256 over names and contents, independent of the order they come in."""
    total = hashlib.sha256()
    for name in sorted(parts):
        total.update(f"{name}\0{len(parts[name])}\0".encode())
        total.update(parts[name])
    return total.hexdigest()[:8]
