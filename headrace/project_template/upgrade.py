"""`headrace upgrade`: brings what a later Headrace writes into a project that an earlier one has written.

Each file is merged from three texts: what Headrace wrote then, what the user has now, and what Headrace would write now. A
user's change always stays; where both changed the same lines, the file gets git's conflict markers.
"""

from __future__ import annotations

import difflib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from headrace import __version__
from headrace.errors import UsageError
from headrace.files import write_text
from headrace.permissions import tracked_mode
from headrace.project import Project
from headrace.project_template.files import template_files
from headrace.project_template.record import FILE, Record, read_record, require_no_newer, write_record

COPIES = "upgrades"
"""Folder in `.headrace/` with the files as they were before each upgrade."""

Kind = Literal["added", "changed", "merged", "conflict", "removed", "kept"]


@dataclass(frozen=True)
class Change:
    """What an upgrade does to one file."""

    path: str
    kind: Kind
    """`changed`: the user had not changed it. `merged`: the user had, elsewhere in the file. `kept`: the user has removed the
    file, or changed one that Headrace no longer writes, so it stays as it is."""
    before: str | None
    """None if the file does not exist."""
    after: str | None

    @property
    def diff(self) -> str:
        """In the unified format, from the file as it is to what `apply` writes."""
        before, after = ((text or "").splitlines(keepends=True) for text in (self.before, self.after))
        lines = difflib.unified_diff(before, after, f"a/{self.path}", f"b/{self.path}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def changes(project: Project) -> list[Change]:
    """Compares the project with what this Headrace would write, and returns what differs, in the order of the paths.

    Raises:
        UsageError: the project is a clone of Headrace, or `headrace init` did not write it, or a later Headrace did.
    """
    record = _record(project)
    now = template_files(record.name)
    found = [_change(path, record.files.get(path), _read(project.root / path), now.get(path)) for path in {*record.files, *now}]
    return sorted((change for change in found if change is not None), key=lambda change: change.path)


def apply(changes: Sequence[Change], project: Project) -> Path | None:
    """Writes the changes, after a copy of each file that it changes, and records that the project is up to date.

    Returns:
        The folder with the copies; None if no file that existed has changed.

    Raises:
        UsageError: as `changes`.
        DiskFull: no space is left; the same command continues.
    """
    record = _record(project)
    written = [change for change in changes if change.before != change.after]
    copied = [change.path for change in written if change.before is not None]
    copies = project.state / COPIES / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for path in copied:
        (copies / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project.root / path, copies / path)
    for change in written:
        place = project.root / change.path
        if change.after is None:
            place.unlink()
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, change.after, tracked_mode(place))
    write_record(project.root, Record(record.name, __version__, template_files(record.name)))
    return copies if copied else None


def _record(project: Project) -> Record:
    if project.is_clone:
        raise UsageError(
            "this is a clone of Headrace's repository, and git brings its changes", where=str(project.root), hint="git pull"
        )
    record = read_record(project.root)
    if record is None:
        raise UsageError(
            f"{FILE} is missing, which says what `headrace init` wrote",
            where=str(project.root),
            hint=f"write what git show HEAD:{FILE} prints into it; or headrace init NAME, and move recipes/, data.dvc and your "
            "own files there",
        )
    require_no_newer(record)
    return record


def _change(path: str, then: str | None, mine: str | None, now: str | None) -> Change | None:
    """Merges one file. None where nothing is to be done."""
    if now in (then, mine):
        return None
    if mine == then:
        return Change(path, "added" if mine is None else "removed" if now is None else "changed", mine, now)
    if mine is None or now is None:
        return Change(path, "kept", mine, mine)
    merged, has_conflict = _merge(mine, then or "", now)
    if merged == mine:
        return None
    return Change(path, "conflict" if has_conflict else "merged", mine, merged)


def _merge(mine: str, then: str, now: str) -> tuple[str, bool]:
    """Merges three texts; returns the result, and whether it has conflict markers.

    Raises:
        UsageError: git is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        names = {"yours": mine, "before": then, f"headrace {__version__}": now}
        paths = [Path(folder) / str(number) for number in range(len(names))]
        for path, text in zip(paths, names.values(), strict=True):
            path.write_text(text, encoding="utf-8", newline="")
        labels = [part for name in names for part in ("-L", name)]
        try:
            done = subprocess.run(["git", "merge-file", "-p", *labels, *map(str, paths)], capture_output=True)
        except FileNotFoundError:
            raise UsageError("merging files requires git, which is not installed", hint="install git") from None
    if done.returncode > 127:  # a negative number of git: an error, not a count of conflicts
        raise UsageError(f"git cannot merge: {done.stderr.decode(errors='replace').strip()}", hint="git merge-file --help")
    return done.stdout.decode(), done.returncode > 0


def _read(path: Path) -> str | None:
    """Returns the text with its line ends as they are; None if the file does not exist.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not UTF-8: {error}", where=str(path), hint="save it as UTF-8") from None
