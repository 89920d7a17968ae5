"""Files whose lines are only ever added, one JSON object each, with the sha256 of the line before it.

A line changed or taken out later shows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from headrace.errors import HeadraceError

START = "0" * 64


class Link(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True)
    previous: str = START
    """The sha256 of the line before."""


L = TypeVar("L", bound=Link)


def add(path: Path, make: Callable[[str], L]) -> L:
    """Adds the line that `make` gives for the sha256 of the one before it; synced to disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        _mend_tail(path)
        lines = _lines(path)
        link = make(_sha256(lines[-1]) if lines else START)
        with path.open("a", encoding="utf-8") as handle:
            handle.write(link.model_dump_json() + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    return link


def read(path: Path, kind: type[L], what: str) -> list[L]:
    """All lines, oldest first.

    Raises:
        HeadraceError: a line of `what` was changed or taken out.
    """
    found, previous = [], START
    for number, line in enumerate(_lines(path), start=1):
        try:
            link = kind.model_validate_json(line)
        except ValueError:
            link = None
        if link is None or link.previous != previous:
            raise HeadraceError(
                f"the {what} was changed here: this line does not follow the one before it",
                where=f"{path}:{number}",
                hint=f"restore {path.parent.name}/{path.name} from a backup",
            )
        previous = _sha256(line)
        found.append(link)
    return found


def _sha256(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a line without its end is one that a kill cut: it was never recorded
    return [line for line in whole.split("\n") if line]


def _mend_tail(path: Path) -> None:
    """Cuts off a last line that a kill left unfinished."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) != len(content):
        with path.open("r+b") as handle:
            handle.truncate(len(whole))
