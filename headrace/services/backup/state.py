"""Which files of a project are state that cannot be made again. What is not named here as rebuilt is kept."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.project import Project

REBUILT = frozenset(
    [
        *("run", "logs", "locks", "supervisor", "replicas", "gateway", "door", "data_docs", "great_expectations", "validation"),
        *("processes", "released", "incoming", "cache", "encoded", "checkpoints", "reproductions", "snapshot", "tracking.done"),
        *("simulations", "sockets", "compressed"),
    ]
)
"""Names in `.headrace/` that are not in a backup: the next `headrace up` or release writes them again."""
NEVER = frozenset([".git", ".venv", "__pycache__", "artifacts", "wheelhouse", "node_modules", ".headrace-restore"])
"""Folders of the project that are never in a backup, whether or not git ignores them."""
FILES = ("headrace.toml", "dvc.yaml", "dvc.lock", "data.dvc", ".dvc/config", ".dvc/config.local", "prefect.yaml")
"""Files of the project that are always in a backup, also when git holds them: the state refers to them."""
SET_ASIDE = "before-restore-"
"""Begin of the name of the folder that `headrace restore --replace` moves the old state to."""
ARCHIVE_NAME = "headrace-backup.tar"
"""The name in the gzip header of every backup, by which an archive inside of the project is recognised."""


def kept_in_state_folder(project: Project) -> list[Path]:
    """Files and folders of `.headrace/` that cannot be made again, without bentos and Prefect's database."""
    if not project.state.is_dir():
        return []
    others = {*REBUILT, "bentoml", "prefect"}
    return [path for path in sorted(project.state.iterdir()) if path.name not in others]


def existing_state(project: Project) -> list[str]:
    """Names, relative to the project, of state that a restore would meet; empty in a fresh clone."""
    found = [f"mlruns/{path.name}" for path in _listed(project.mlruns) if path.name != "README.md" and path.suffix != ".lock"]
    found += [f".headrace/{path.name}" for path in kept_in_state_folder(project)]
    found += [f".headrace/{name}" for name in ("bentoml/bentos", "prefect/prefect.db") if (project.state / name).exists()]
    return found + (["data"] if any(_listed(project.data)) else [])


def files_outside_git(project: Project) -> list[str]:
    """Files of the working tree, relative to the project, that git does not hold as they are: new or changed, not ignored.

    Without git: Python files beside `recipes/`, which custom classes may be in.
    """
    listed = _git(project, "ls-files", "-z", "--others", "--modified", "--exclude-standard")
    found = {path.name for path in project.root.glob("*.py")} if listed is None else {*listed.split("\0")} - {""}
    return sorted(name for name in found if not is_handled_elsewhere(name) and (project.root / name).is_file())


def is_handled_elsewhere(name: str) -> bool:
    """Whether a file belongs to a folder that is in a backup by another rule, or never is."""
    first = Path(name).parts[0]
    return (
        first in (*NEVER, "data", "mlruns", ".headrace", ".dvc")
        or first.startswith(SET_ASIDE)
        or first.endswith(".egg-info")
        or "__pycache__" in Path(name).parts
    )


def is_held_by_git(project: Project, name: str) -> bool:
    """Whether git has the content of a file: it is tracked and unchanged."""
    return bool(_git(project, "ls-files", "--", name)) and _git(project, "diff", "--name-only", "HEAD", "--", name) == ""


def commit(project: Project) -> str | None:
    """The commit that is checked out; None without git."""
    return (_git(project, "rev-parse", "HEAD") or "").strip() or None


def is_backup(path: Path) -> bool:
    """Whether a file is an archive of `headrace backup`."""
    with path.open("rb") as handle:
        start = handle.read(10 + len(ARCHIVE_NAME))
    return start[:2] == b"\x1f\x8b" and start[10:].startswith(ARCHIVE_NAME.removesuffix(".tar").encode())


def is_restore_unfinished(project: Project) -> bool:
    """Whether a restore was killed while it moved files."""
    return (project.restoring / "moving").exists()


def require_restored(project: Project) -> None:
    """
    Raises:
        HeadraceError: a restore was killed while it moved files, so that old and new state are mixed.
    """
    if is_restore_unfinished(project):
        raise HeadraceError(
            "an earlier restore was interrupted: state of the backup and earlier state are mixed",
            where=str(project.restoring),
            hint="headrace restore FILE --replace   (it restores all of it again, and keeps what it replaces)",
        )


def _listed(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.iterdir()) if folder.is_dir() else ()


def _git(project: Project, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(project.root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
