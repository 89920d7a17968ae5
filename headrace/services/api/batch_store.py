"""Batches on disk: one folder each under `.headrace/batches/`, created atomically.

    batch.json      what was sent by whom, written once, before the folder gets its name
    input           the rows as they were sent, until the batch has ended
    parts/          answers, one file per 1,000 rows, or fewer before a pause: `<part>-<rows>-<failed rows>.jsonl`
    progress.json   the state of the batch
    result.parquet  the result of a Parquet batch without other columns, once all parts are written
    result          any other result that is not just the parts, in the format of the rows

A part appears by a rename, so that a restarted process continues with the first missing part, and no row is answered twice.
A batch whose description cannot be read is moved to `.headrace/batches/damaged/`, where nothing is removed: the API server
starts without it and shows it as failed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from headrace.client.answers import ENDED, State
from headrace.errors import DamagedFile
from headrace.files import read_object, write_json
from headrace.project import Project
from headrace.scoring.refusals import Refusal
from headrace.scoring.rows import CSV, JSON_LINES, PARQUET, ZIP, Others

logger = logging.getLogger("headrace.services.api.batch")
MEDIA_TYPES = (PARQUET, JSON_LINES, CSV, "text/tab-separated-values", ZIP, "application/gzip", "application/octet-stream")
"""Of the files that are taken; what a file is depends on its content."""
OTHERS: tuple[Others, ...] = ("refuse", "ignore", "keep")
ID = re.compile(r"[0-9a-f]{32}")
PART = re.compile(r"(\d+)-(\d+)-(\d+)")
INCOMING = ".incoming-"
Parsed = TypeVar("Parsed")
DAMAGED = {"code": "damaged", "message": "the server cannot read its files of this batch any more; submit the file again"}
HINT = "restore the folder of the batch from a backup, or remove it; then restart the API server"


@dataclass(frozen=True)
class Submitted:
    """The description of a batch, which never changes once it is accepted."""

    id: str
    model: str
    tenant: str
    jti: str
    """Id of the token that it was sent with; the batch fails when that token is revoked."""
    rows_per_day: int | None
    media_type: str
    bytes: int
    sha256: str
    created_at: float
    columns: Others = "refuse"
    tokens_per_day: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class Progress:
    """The state of a batch."""

    state: State = "queued"
    rows_done: int = 0
    rows_failed: int = 0
    rows_total: int | None = None
    waits_until: float | None = None
    error: dict[str, Any] | None = None
    changed_at: float = 0.0
    """When a part was last added, or the state changed; seconds since 1970."""
    answer_bytes: int = 0
    """Size of the parts."""
    media_type: str | None = None
    """Of the file's content, once it has been read; the result has the same."""
    notes: list[str] = field(default_factory=list)
    """How the file was read."""
    refusals: list[Refusal] = field(default_factory=list)
    """Why rows were refused, once the batch is done."""
    warnings: dict[str, int] = field(default_factory=dict)
    """Values that training has not seen, by field, once the batch is done."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Part:
    """A file of answers."""

    index: int
    rows: int
    failed: int
    path: Path


class BatchFolder:
    """The files of one batch, for the API server and for the process that works on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.input, self.lock = path / "input", path / "lock"
        self.result, self.table = path / "result.parquet", path / "result"

    @property
    def submitted(self) -> Submitted:
        """The description; fields that this version does not know are left out.

        Raises:
            DamagedFile: it cannot be read.
        """
        path = self.path / "batch.json"
        if (found := read_object(path, HINT)) is None:
            raise DamagedFile("missing file", where=str(path), hint=HINT)
        return _parse(_SUBMITTED, found, path)

    @property
    def progress(self) -> Progress:
        """The state; failed if its file cannot be read, so that one batch cannot stop the others."""
        try:
            return self._read_progress()
        except DamagedFile:
            return Progress("failed", error=DAMAGED, changed_at=_changed_at(self.path))

    def write_progress(self, progress: Progress) -> None:
        write_json(self.path / "progress.json", asdict(progress))

    def repair(self) -> None:
        """Completes what a kill left undone, and sets a state that cannot be read aside.

        A batch without its state that still has its rows continues with the first missing part.
        """
        try:
            if self._read_progress().has_ended:
                self.input.unlink(missing_ok=True)
        except DamagedFile as error:
            logger.error("%s; it is set aside as progress.json.damaged", error.headline)
            (self.path / "progress.json").rename(self.path / "progress.json.damaged")
            if not self.input.exists():
                self.write_progress(Progress("failed", error=DAMAGED, changed_at=now()))

    def parts(self) -> list[Part]:
        """The parts in order, up to the first missing one."""
        found = {}
        for path in (self.path / "parts").glob("*.jsonl"):
            if match := PART.fullmatch(path.stem):
                index, rows, failed = map(int, match.groups())
                found[index] = Part(index, rows, failed, path)
        complete: list[Part] = []
        while len(complete) in found:
            complete.append(found[len(complete)])
        return complete

    def _read_progress(self) -> Progress:
        path = self.path / "progress.json"
        return _parse(_PROGRESS, read_object(path, HINT) or {}, path)

    def part_path(self, index: int, rows: int, failed: int) -> Path:
        return self.path / "parts" / f"{index:08}-{rows}-{failed}.jsonl"

    def remove_rows(self) -> None:
        """Removes the rows that were sent and all answers."""
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        for path in (self.input, self.result, self.table):
            path.unlink(missing_ok=True)


class BatchStore:
    """All batches of a project."""

    def __init__(self, project: Project) -> None:
        self.root = project.state / "batches"
        self.damaged = self.root / "damaged"

    def open(self) -> list[BatchFolder]:
        """Returns all batches that can be read, and sets the others aside.

        Removes uploads that the end of an earlier API server interrupted.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for path in self.root.glob(f"{INCOMING}*"):
            shutil.rmtree(path, ignore_errors=True)
        return [folder for path in list(self.root.iterdir()) if ID.fullmatch(path.name) and (folder := self._checked(path))]

    def _checked(self, path: Path) -> BatchFolder | None:
        """Returns the batch in a folder, or None if it cannot be read and was set aside."""
        folder = BatchFolder(path)
        try:
            if folder.submitted.id != path.name:
                raise DamagedFile(f"damaged file: it describes the batch {folder.submitted.id!r}", where=str(path), hint=HINT)
            folder.repair()
            return folder
        except DamagedFile as error:
            self._set_aside(path, error)
        except OSError as error:  # for example no permission: its files may be in order
            logger.error("batch %s cannot be read, and is left as it is: %s", path.name, error)
        return None

    def _set_aside(self, path: Path, why: Exception) -> None:
        place = self.damaged / path.name
        try:
            self.damaged.mkdir(exist_ok=True)
            path.rename(self.damaged / f"{path.name}-{secrets.token_hex(4)}" if place.exists() else place)
        except OSError as error:
            logger.error("batch %s cannot be read (%s), nor moved to %s: %s", path.name, why, self.damaged, error)
        else:
            logger.error("batch %s cannot be read, and was moved to %s: %s", path.name, self.damaged, why)

    def set_aside_at(self, batch_id: str) -> float | None:
        """When a batch of this id, which was set aside, was last changed; None if there is none."""
        place = self.damaged / batch_id
        return _changed_at(place) if place.is_dir() else None

    def folder(self, batch_id: str) -> BatchFolder:
        return BatchFolder(self.root / batch_id)

    def incoming(self) -> Path:
        """Creates an empty folder for an upload, which becomes a batch by `accept`."""
        path = self.root / f"{INCOMING}{secrets.token_hex(8)}"
        path.mkdir(parents=True)
        return path

    def accept(self, incoming: Path, submitted: Submitted) -> BatchFolder | None:
        """Turns an upload into a batch, by one rename. None when a batch of this id exists."""
        write_json(incoming / "batch.json", asdict(submitted))
        place = self.root / submitted.id
        try:
            incoming.rename(place)
        except OSError:
            if not place.exists():
                raise
            return None
        folder = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return BatchFolder(place)

    def discard(self, folder: BatchFolder) -> None:
        """Removes a batch: its name at once, its files soon after."""
        removed = self.root / f"{INCOMING}{secrets.token_hex(8)}"
        folder.path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def batch_id(tenant: str, model: str, key: str) -> str:
    """Returns 32 hex digits: the same for the same idempotency key, random without one."""
    if not key:
        return secrets.token_hex(16)
    return hashlib.sha256(f"{tenant}\0{model}\0{key}".encode()).hexdigest()[:32]


def now() -> float:
    return time.time()


_SUBMITTED, _PROGRESS = TypeAdapter(Submitted), TypeAdapter(Progress)


def _parse(kind: TypeAdapter[Parsed], values: dict[str, Any], path: Path) -> Parsed:
    """Returns the dataclass with these values; unknown ones are left out.

    Raises:
        DamagedFile: a value is missing, or of another type.
    """
    try:
        return kind.validate_python(values)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, mistake["loc"])) for mistake in error.errors())
        raise DamagedFile(f"damaged file: missing or wrong values of {wrong}", where=str(path), hint=HINT) from None


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return now()
