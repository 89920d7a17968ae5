"""Batches on disk: a folder each under `.headrace/batches/`, whole or not there at all.

    batch.json      who sent what, written once, before the folder gets its name
    input           the rows as they were sent, until the batch has ended
    parts/          answers, one file for 1,000 rows, or fewer before a pause: `<part>-<rows>-<failed rows>.jsonl`
    progress.json   how it stands
    result.parquet  of a batch in Parquet, once all parts are there

A part is written beside and renamed, so that whoever goes on starts at the first one that is missing, and no row is answered
twice in a result.
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
    """What is known of a batch from the moment that it is accepted."""

    id: str
    model: str
    tenant: str
    jti: str
    """Of the token it was sent with: a batch ends when that is revoked."""
    rows_per_day: int | None
    media_type: str
    bytes: int
    sha256: str
    created_at: float


@dataclass(frozen=True)
class Progress:
    """How a batch stands."""

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
    """One batch's files, for the desk and for the process that works on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.input, self.lock, self.result = path / "input", path / "lock", path / "result.parquet"

    @property
    def submitted(self) -> Submitted:
        return Submitted(**read_json(self.path / "batch.json"))

    @property
    def progress(self) -> Progress:
        return Progress(**(read_json(self.path / "progress.json") or {}))

    def tell(self, progress: Progress) -> None:
        write_json(self.path / "progress.json", asdict(progress))

    def parts(self) -> list[Part]:
        """In order, from the first one, down to the first that is missing."""
        found = {}
        for path in (self.path / "parts").glob("*.jsonl"):
            if not path.name.startswith("."):
                index, rows, failed = (int(number) for number in path.stem.split("-"))
                found[index] = Part(index, rows, failed, path)
        return [found[index] for index in range(len(found)) if index in found]

    def part_path(self, index: int, rows: int, failed: int) -> Path:
        return self.path / "parts" / f"{index:08}-{rows}-{failed}.jsonl"

    def forget_rows(self) -> None:
        """Leaves nothing of what was sent, and nothing of the answers."""
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        for path in (self.input, self.result):
            path.unlink(missing_ok=True)


class BatchStore:
    """All batches of a project."""

    def __init__(self, project: Project) -> None:
        self.root = project.state / "batches"

    def open(self) -> list[BatchFolder]:
        """Every batch there is; uploads that were cut off by the end of an earlier desk are removed."""
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
        """An empty folder for an upload; it is no batch until `accept`."""
        path = self.root / f"{INCOMING}{secrets.token_hex(8)}"
        path.mkdir(parents=True)
        return path

    def accept(self, incoming: Path, submitted: Submitted) -> BatchFolder | None:
        """Makes an upload a batch, in one rename; None when there is a batch of this id already."""
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
        """Removes a batch: it is gone at once, and its files soon after."""
        gone = self.root / f"{INCOMING}{secrets.token_hex(8)}"
        folder.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def batch_id(tenant: str, model: str, key: str) -> str:
    """With an idempotency key the same id each time; else a fresh one. 32 hex digits."""
    if not key:
        return secrets.token_hex(16)
    return hashlib.sha256(f"{tenant}\0{model}\0{key}".encode()).hexdigest()[:32]


def now() -> float:
    return time.time()
