"""The identity of a model version: git commit, lock file, data, recipe; enough to get each back."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from headrace.project import Project


def git_commit(project: Project, custom_code: Iterable[Path] = ()) -> str:
    """The commit of the code, with `-dirty` when tracked code or recipes differ from it; `none` outside git.

    Args:
        custom_code: files or folders of custom classes.
    """
    commit = _git(project, "rev-parse", "HEAD")
    if not commit:
        return "none"
    changed = _git(
        project, "status", "--porcelain", "--untracked-files=no", "--", "headrace", "flows", "tasks", "bentos", "recipes"
    )
    # Custom code that git does not know is in no commit either.
    custom = [str(path) for path in custom_code]
    return commit + ("-dirty" if changed or (custom and _git(project, "status", "--porcelain", "--", *custom)) else "")


def lock_hash(project: Project) -> str:
    """sha256 of `requirements.lock`, which describes the environment of the training."""
    return sha256(project.root / "requirements.lock")


def code_digest() -> str:
    """Twelve hex digits that change with the code of Headrace, by an upgrade or an edit. Takes about 10 ms."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for folder in (package, package.with_name("bentos")):
        # Python may write compiled files at the same time: they are not read.
        for path in sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts and path.is_file()):
            digest.update(f"{path.relative_to(folder.parent)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def sha256(*paths: Path) -> str:
    """sha256 of the files' bytes, one after the other; a missing file counts as empty."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def _git(project: Project, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(project.root), *arguments], capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
