"""`headrace init`: a new project, outside of the repository of Headrace."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from headrace import __version__
from headrace.console import Report
from headrace.data.versions import track
from headrace.errors import UsageError
from headrace.files import write_text
from headrace.permissions import USER_UMASK, tracked_mode
from headrace.project import Project
from headrace.project_template.files import template_files
from headrace.project_template.record import FILE, Record, write_record

COMMIT_AS = ("-c", "user.name=headrace", "-c", "user.email=headrace@localhost")
"""Author of the first commit where git knows no other."""


def create_project(folder: Path, report: Report) -> Project:
    """Writes a project into `folder`, which is new, or has no file of the same name as one of the project's: all of it or
    nothing. Makes it a git repository with a first commit, unless it is inside of one.

    Args:
        report: called with a line for what the user should know.

    Raises:
        UsageError: files exist already.
        DiskFull: no space is left.
    """
    folder = folder.expanduser().resolve()
    files = template_files(folder.name)
    _require_free(folder, [*files, "data.dvc", FILE])
    is_new = not folder.exists()
    beside = (folder.parent if is_new else folder) / f".{folder.name}.{os.getpid()}.part"
    try:
        _write(Project(beside), files, folder.name)
        if repository := _enclosing_repository(folder):
            report(f"{folder.name} is in the git repository {repository}; commit its files there")
        else:
            _commit(beside, report)
        folder.mkdir(parents=True, exist_ok=True)
        _move_all(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Project(folder)


def _require_free(folder: Path, names: Iterable[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError("it is a file", where=str(folder), hint="headrace init NAME makes a new folder")
    if taken := sorted({top for name in names if (folder / (top := name.partition("/")[0])).exists()}):
        raise UsageError(
            f"the folder already has {', '.join(taken)}; nothing was written",
            where=str(folder),
            hint="name a new folder; or, in an older project, headrace upgrade",
        )


def _write(project: Project, files: dict[str, str], name: str) -> None:
    for path, text in files.items():
        place = project.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, text, tracked_mode(place))
    write_record(project.root, Record(name, __version__, files))
    project.data.mkdir()
    track(project)  # writes data.dvc, of no files yet


def _enclosing_repository(folder: Path) -> str | None:
    """The git repository that `folder` is part of; None where git ignores it, or where there is none."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    if _git(existing, "check-ignore", "--quiet", str(folder)).returncode == 0:
        return None
    return _git(existing, "rev-parse", "--show-toplevel").stdout.strip() or None


def _commit(root: Path, report: Report) -> None:
    """Makes a repository of the project, with one commit."""
    if shutil.which("git") is None:
        report("git is not installed, so the project is not a git repository; versions of models will not name a commit")
        return
    author = () if _git(root, "config", "user.email").stdout.strip() else COMMIT_AS
    for arguments in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        [
            *author,
            "-c",
            "commit.gpgsign=false",
            "commit",
            "--quiet",
            "--no-verify",
            "--message",
            f"headrace init, {__version__}",
        ],
    ):
        done = _git(root, *arguments)
        if done.returncode:
            report(f"git {arguments[0]} failed, so commit the project yourself: {done.stderr.strip()[:300]}")
            return


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    umask = int(os.environ.get(USER_UMASK, "") or "-1", 8)  # the repository is as open as the user's others
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, umask=umask)
    except FileNotFoundError:
        return subprocess.CompletedProcess(arguments, 127, "", "git is not installed")


def _move_all(source: Path, target: Path) -> None:
    """Moves all entries of `source` into `target`; after an error none of them is there."""
    moved: list[Path] = []
    try:
        for entry in sorted(source.iterdir()):
            moved.append(entry.rename(target / entry.name))
    except BaseException:
        for entry in moved:
            entry.rename(source / entry.name)
        raise
