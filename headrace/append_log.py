"""Append-only logs: one JSON object per line, each with the sha256 of the line before, so that later changes are detected."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from headrace.errors import HeadraceError

FIRST = "0" * 64


class LogEntry(BaseModel):
    """One line of a log."""

    model_config = ConfigDict(frozen=True)
    previous: str = FIRST
    """sha256 of the line before."""


E = TypeVar("E", bound=LogEntry)


def append(path: Path, make: Callable[[str], E]) -> E:
    """Appends the entry that `make` returns for the sha256 of the last line. It is synced to disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        _remove_partial_line(path)
        lines = _lines(path)
        entry = make(_sha256(lines[-1]) if lines else FIRST)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(entry.model_dump_json() + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    return entry


def read_entries(path: Path, cls: type[E], name: str) -> list[E]:
    """Returns all entries, oldest first. `name` is the log's name in messages.

    Raises:
        HeadraceError: a line was changed or removed.
    """
    found, previous = [], FIRST
    for number, line in enumerate(_lines(path), start=1):
        try:
            entry = cls.model_validate_json(line)
        except ValueError:
            entry = None
        if entry is None or entry.previous != previous:
            raise HeadraceError(
                f"the {name} was modified: this line does not match the one before it",
                where=f"{path}:{number}",
                hint=f"restore {path.parent.name}/{path.name} from a backup",
            )
        previous = _sha256(line)
        found.append(entry)
    return found


def _sha256(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]  # a killed process may have left a partial line, which does not count
    return [line for line in complete.split("\n") if line]


def _remove_partial_line(path: Path) -> None:
    """Removes a partial last line, which a killed process may have left."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) != len(content):
        with path.open("r+b") as handle:
            handle.truncate(len(complete))
