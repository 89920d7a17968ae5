"""Batches on disk: one folder each under `.headrace/batches/`, created atomically.

    batch.json      what was sent by whom, written once, before the folder gets its name
    input           the rows as they were sent, until the batch has ended
    parts/          answers, one file per 1,000 rows, or fewer before a pause: `<part>-<rows>-<failed rows>.jsonl`
    progress.json   the state of the batch
    result.parquet  the result of a Parquet batch, once all parts are written

A part appears by a rename, so that a restarted process continues with the first missing part, and no row is answered twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.client.answers import ENDED, State
from headrace.files import read_json, write_json
from headrace.project import Project

PARQUET, JSON_LINES = "application/vnd.apache.parquet", "application/x-ndjson"
PART_ROWS = 1000
ID = re.compile(r"[0-9a-f]{32}")
INCOMING = ".incoming-"


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
        self.input, self.lock, self.result = path / "input", path / "lock", path / "result.parquet"

    @property
    def submitted(self) -> Submitted:
        return Submitted(**read_json(self.path / "batch.json"))

    @property
    def progress(self) -> Progress:
        return Progress(**(read_json(self.path / "progress.json") or {}))

    def write_progress(self, progress: Progress) -> None:
        write_json(self.path / "progress.json", asdict(progress))

    def parts(self) -> list[Part]:
        """The parts in order, up to the first missing one."""
        found = {}
        for path in (self.path / "parts").glob("*.jsonl"):
            if not path.name.startswith("."):
                index, rows, failed = (int(number) for number in path.stem.split("-"))
                found[index] = Part(index, rows, failed, path)
        return [found[index] for index in range(len(found)) if index in found]

    def part_path(self, index: int, rows: int, failed: int) -> Path:
        return self.path / "parts" / f"{index:08}-{rows}-{failed}.jsonl"

    def remove_rows(self) -> None:
        """Removes the rows that were sent and all answers."""
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        for path in (self.input, self.result):
            path.unlink(missing_ok=True)


class BatchStore:
    """All batches of a project."""

    def __init__(self, project: Project) -> None:
        self.root = project.state / "batches"

    def open(self) -> list[BatchFolder]:
        """Returns all batches, and removes uploads that the end of an earlier API server interrupted."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for path in self.root.glob(f"{INCOMING}*"):
            shutil.rmtree(path, ignore_errors=True)
        return [
            BatchFolder(path) for path in self.root.iterdir() if ID.fullmatch(path.name) and (path / "batch.json").is_file()
        ]

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
