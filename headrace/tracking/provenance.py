"""The identity of a model version: git commit, lock file, data, recipe; enough to get each back."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from headrace.project import Project

BLOCK_BYTES = 1 << 20
CODE = ("headrace", "flows", "tasks", "bentos", "deploy/serving")
"""Folders of Headrace's code."""
FILES = ("dvc.yaml", "requirements.lock")


@dataclass(frozen=True)
class Changes:
    """How the working tree differs from the last commit; paths are relative to the project, sorted."""

    commit: str
    """`none` outside of git; then `changed` has all files."""
    changed: tuple[str, ...]
    """Changed, or not in the commit."""
    removed: tuple[str, ...]

    @property
    def uncommitted(self) -> list[str]:
        """Paths that the commit does not have as they are, without dvc.yaml, which Headrace writes; none outside of git."""
        return [] if self.commit == "none" else [path for path in (*self.changed, *self.removed) if path != "dvc.yaml"]

    @property
    def git_commit(self) -> str:
        """The commit, with `-dirty` when something is `uncommitted`; `none` outside of git."""
        return f"{self.commit}-dirty" if self.uncommitted else self.commit


def changes(project: Project, files: Iterable[Path]) -> Changes:
    """Compares the code, `dvc.yaml`, `requirements.lock` and `files` with the last commit.

    Args:
        files: the recipe and the modules of custom classes, as files or folders. Unlike in the folders of code, what git
            ignores counts.
    """
    root = project.root.resolve()
    own = [path.resolve().relative_to(root).as_posix() for path in files]
    commit = _git(project, "rev-parse", "HEAD")
    if not commit:
        return Changes("none", tuple(sorted(_existing(root, own))), ())
    paths = ["--", *CODE, *FILES, *own]
    differing = {
        *_listed(project, "diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD", *paths),
        *_listed(project, "ls-files", "--others", "--exclude-standard", "-z", *paths),
        *(_listed(project, "ls-files", "--others", "-z", "--", *own) if own else ()),
    }
    differing = {path for path in differing if "__pycache__" not in Path(path).parts}
    changed = {path for path in differing if (root / path).is_file()}
    return Changes(commit, tuple(sorted(changed)), tuple(sorted(differing - changed)))


def _existing(root: Path, files: list[str]) -> set[str]:
    found = [path for folder in CODE for path in (root / folder).rglob("*") if "__pycache__" not in path.parts]
    return {path.relative_to(root).as_posix() for path in found if path.is_file()} | {
        path for path in (*FILES, *files) if (root / path).is_file()
    }


def lock_hash(project: Project) -> str:
    """sha256 of `requirements.lock`, which describes the environment of the training; in a project that is not a clone, of the
    installed code of Headrace too."""
    lock = project.root / "requirements.lock"
    if project.is_clone:
        return sha256(lock)
    return hashlib.sha256(f"{code_digest()} {sha256(lock)}".encode()).hexdigest()


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
        if path.exists():
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
    return digest.hexdigest()


def _listed(project: Project, *arguments: str) -> list[str]:
    return [path for path in _git(project, *arguments).split("\0") if path]


def _git(project: Project, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(project.root), *arguments], capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
