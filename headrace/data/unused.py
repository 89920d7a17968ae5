"""Files of DVC's cache that nothing names any more."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from headrace.data.restore import tree_of_version
from headrace.data.versions import open_repo
from headrace.errors import HeadraceError
from headrace.project import Project

NAMED = re.compile(r"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\b")
POINTERS = (".dvc", "dvc.lock")
"""Ends of the names of DVC's files."""
OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")


def unused_files(project: Project, versions: Iterable[tuple[str, str | None, Sequence[str]]]) -> Iterator[Path]:
    """Yields files of the cache that are named neither by a commit or pointer, nor by one of `versions`.

    Args:
        versions: recipe, md5 of its data, and the md5 of its files where they are known.
    """
    with open_repo(project) as repo:
        root = Path(repo.cache.local.path)
    if not root.is_dir():
        return
    kept = {md5 for text in _pointers(project) for md5 in NAMED.findall(text)}
    for md5 in [one for one in kept if one.endswith(".dir")]:
        kept |= _entries(root, md5)
    for recipe, data_md5, files in versions:
        kept |= set(files)
        if data_md5 is not None and not files:
            kept |= tree_of_version(root, recipe, data_md5)
    for path in sorted(root.glob("??/*")):
        if OBJECT.fullmatch(path.name) and path.parent.name + path.name not in kept:
            yield path


def _pointers(project: Project) -> Iterator[str]:
    """Texts of DVC's files, as they are now and as any commit has them.

    They are searched as texts: DVC refuses to list what a commit uses as soon as the cache lacks one folder that it names, and
    no clone has everything that was ever committed.
    """
    names = ["dvc.lock", *(path.name for path in project.root.glob("*.dvc"))]
    if any((folder / ".git").exists() for folder in (project.root, *project.root.parents)):
        names += _git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")  # of subfolders too
        listed = _git(project, "rev-list", "--all", "--objects")
        blobs = [line.split(" ", 1)[0] for line in listed.splitlines() if line.endswith(POINTERS)]
        yield _git(project, "cat-file", "--batch", given="".join(f"{blob}\n" for blob in blobs))
    for path in (project.root / name for name in set(names) if name.endswith(POINTERS)):
        if path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def _git(project: Project, *arguments: str, given: str = "") -> str:
    """
    Raises:
        HeadraceError: git fails; nothing may be removed then.
    """
    command = ["git", "-C", str(project.root), *arguments]
    done = subprocess.run(command, input=given.encode(), capture_output=True)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip() or f"it exited with {done.returncode}"
        raise HeadraceError(f"git cannot list DVC's files: {reason}", where=str(project.root), hint="git fsck")
    return done.stdout.decode(errors="replace")


def _entries(root: Path, md5: str) -> set[str]:
    import json

    try:
        return {str(entry["md5"]) for entry in json.loads((root / md5[:2] / md5[2:]).read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError):  # gone, or half a file: it names nothing
        return set()
