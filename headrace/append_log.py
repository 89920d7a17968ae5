"""Append-only logs: one JSON object per line, each with the sha256 of the line before, so that later changes are detected.

The number of lines and the hash of the last one are kept in another folder, signed with a key that only this user can read:
lines that were cut off at the end, and a file that was written again as a whole, are detected too. They are not detected if
whoever changed the log can read that key, or put log, anchor and key back to an earlier state together.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from headrace.errors import HeadraceError
from headrace.files import require_known_schema, write_secret, write_text

FIRST = "0" * 64


class LogEntry(BaseModel):
    """One line of a log."""

    model_config = ConfigDict(frozen=True)
    previous: str = FIRST
    """sha256 of the line before."""


@dataclass(frozen=True)
class Log:
    """A log, and where its end is recorded apart from it."""

    path: Path
    name: str
    """In messages."""
    state: Path
    """The folder `.headrace`."""

    @property
    def anchor(self) -> Path:
        """Number of lines and sha256 of the last one, signed with `key`."""
        return self.state / "anchors" / f"{self.path.stem}.json"

    @property
    def key(self) -> Path:
        """Readable by this user only."""
        return self.state / "keys" / f"{self.path.stem}.key"


class Anchor(BaseModel):
    """What a log's end is known to be."""

    model_config = ConfigDict(frozen=True)
    count: int
    last: str
    """sha256 of line `count`."""
    pending: str | None = None
    """sha256 of the line that was about to be added: after a kill it is there or not."""
    hmac: str = ""

    def signature(self, key: bytes) -> str:
        text = f"{self.count} {self.last} {self.pending}"
        return hmac.new(key, text.encode(), "sha256").hexdigest()


E = TypeVar("E", bound=LogEntry)


def append(log: Log, make: Callable[[str], E]) -> E:
    """Appends the entry that `make` returns for the sha256 of the last line. It is synced to disk when this returns.

    The anchor of a log whose end is not as recorded stays as it is, so that `read_entries` goes on to report it.
    """
    with locked(log):
        _remove_partial_line(log.path)
        lines = _lines(log.path)
        last = _sha256(lines[-1]) if lines else FIRST
        entry = make(last)
        line = entry.model_dump_json()
        is_as_recorded = _why_not_as_recorded(log, lines) is None
        if is_as_recorded:
            _write_anchor(log, Anchor(count=len(lines), last=last, pending=_sha256(line)))
        with log.path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        if is_as_recorded:
            _write_anchor(log, Anchor(count=len(lines) + 1, last=_sha256(line)))
    return entry


@contextmanager
def locked(log: Log) -> Iterator[None]:
    """Holds the lock of a log: nothing is appended meanwhile."""
    log.path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(log.path.with_suffix(".lock")):
        yield


def read_entries(log: Log, cls: type[E]) -> list[E]:
    """Returns all entries, oldest first.

    Raises:
        HeadraceError: a line was changed or removed, or the whole file was replaced.
        NewerFile: a newer version of Headrace wrote a line.
    """
    lines = _lines(log.path)
    found, previous = [], FIRST
    for number, line in enumerate(lines, start=1):
        try:
            entry = cls.model_validate_json(line)
            if '"schema_version"' in line:
                _require_known_schema(line, log)
        except ValueError:
            _require_known_schema(line, log)
            entry = None
        if entry is None or entry.previous != previous:
            raise _modified(log, f":{number}", "this line does not match the one before it")
        previous = _sha256(line)
        found.append(entry)
    if _why_not_as_recorded(log, lines) is not None:
        with locked(log):  # a line may have been added since the file was read
            reason, lines_now = _why_not_as_recorded(log, _lines(log.path)), _lines(log.path)
        if reason is not None:
            raise _modified(log, "", reason)
        if lines_now != lines:
            return read_entries(log, cls)
    return found


def _require_known_schema(line: str, log: Log) -> None:
    with suppress(ValueError):
        require_known_schema(json.loads(line), log.path)


def _modified(log: Log, place: str, reason: str) -> HeadraceError:
    return HeadraceError(
        f"the {log.name} was modified: {reason}",
        where=f"{log.path}{place}",
        hint=f"restore {log.path.parent.name}/{log.path.name} from a backup",
    )


def _why_not_as_recorded(log: Log, lines: list[str]) -> str | None:
    """Why the end of a log is not as its anchor says; None when it is, and for a log of an older version, without an anchor."""
    key = log.key.read_text(encoding="utf-8") if log.key.exists() else None
    try:
        anchor = Anchor.model_validate_json(log.anchor.read_bytes()) if log.anchor.exists() else None
    except ValueError:
        return f"its anchor {log.anchor} cannot be read"
    if anchor is None or key is None:
        missing = log.anchor if anchor is None else log.key
        return None if anchor is None and key is None else f"{missing}, which its end is compared with, is missing"
    if not hmac.compare_digest(anchor.signature(bytes.fromhex(key)), anchor.hmac):
        return f"its anchor {log.anchor} was modified"
    if len(lines) < anchor.count:
        return f"it has {len(lines)} lines, and had {anchor.count}"
    if anchor.count and _sha256(lines[anchor.count - 1]) != anchor.last:
        return f"line {anchor.count} is not the one that was written"
    added = [_sha256(line) for line in lines[anchor.count :]]
    return None if added in ([], [anchor.pending]) else f"it has {len(lines)} lines, and had {anchor.count}"


def _write_anchor(log: Log, anchor: Anchor) -> None:
    if not log.key.exists():
        write_secret(log.key, secrets.token_hex(32))
    signed = anchor.model_copy(update={"hmac": anchor.signature(bytes.fromhex(log.key.read_text(encoding="utf-8")))})
    write_text(log.anchor, signed.model_dump_json() + "\n")


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
