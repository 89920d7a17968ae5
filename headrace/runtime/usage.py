"""What each tenant was given: counters in a file that outlives its process, one file a process. Shared; light.

A process adds to a memory-mapped file before an answer leaves, so that `kill -9` loses nothing; a thread brings it to the disk
every second, so that a power cut loses a second. The file is locked for as long as its process lives. `fold` moves the
counters of processes that are gone into `usage.db`, each file exactly once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from headrace.errors import ServiceError
from headrace.runtime.usage_file import PATTERN, CounterFile, UsageRow, read_counters

logger = logging.getLogger("headrace.runtime.usage")
SYNC_SECONDS = 1.0
DAY_SECONDS = 86_400
ABANDONED_SECONDS = 60.0
REMEMBERED_SECONDS = 86_400.0
"""How long it is known that a file was folded, for readers who have read it just before."""
DATABASE = "usage.db"

SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT, tenant TEXT, model TEXT, requests INTEGER, rows INTEGER, tokens INTEGER, PRIMARY KEY (day, tenant, model)
);
CREATE TABLE IF NOT EXISTS folded (file TEXT PRIMARY KEY, at REAL);
"""
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
requests = requests + excluded.requests, rows = rows + excluded.rows, tokens = tokens + excluded.tokens
"""


class Ledger:
    """The counters of this process, in a file of its own in `folder`. Called from one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: CounterFile | None = None
        self._left: list[CounterFile] = []
        self._day = ""
        self._day_ends = 0.0
        self._waiting: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._try_again_at = 0.0
        self._stop = threading.Event()
        self._turn(time.time())
        self._thread = threading.Thread(target=self._keep_synced, name="ledger", daemon=True)
        self._thread.start()

    def add(self, tenant: str, model: str, rows: int, tokens: int = 0, requests: int = 1) -> None:
        """Counts; when it returns, no end of this process takes it back. On a full disk it waits in memory for space."""
        if (now := time.time()) >= self._day_ends:
            self._turn(now)
        if self._waiting and now >= self._try_again_at:
            self._settle(now)
        if self._file is not None:
            try:
                self._file.add(tenant, model, requests, rows, tokens)
                return
            except OSError as error:
                self._complain(error)
        before = self._waiting.get((tenant, model), (0, 0, 0))
        self._waiting[tenant, model] = (before[0] + requests, before[1] + rows, before[2] + tokens)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._waiting:
            self._settle(time.time())
        for file in [*self._left, *([self._file] if self._file else [])]:
            file.close()
        self._file, self._left = None, []

    def _turn(self, now: float) -> None:
        """A file for the day that begins: yesterday's is done with and can be folded."""
        if self._file is not None:
            self._left.append(self._file)
        self._day = datetime.fromtimestamp(now, UTC).date().isoformat()
        self._day_ends = (now // DAY_SECONDS + 1) * DAY_SECONDS
        self._file = self._open()

    def _open(self) -> CounterFile | None:
        try:
            return CounterFile(self._folder, self._day)
        except OSError as error:
            self._complain(error)
            return None

    def _settle(self, now: float) -> None:
        """Writes what waits in memory, if there is space now."""
        self._try_again_at = now + SYNC_SECONDS
        self._file = self._file or self._open()
        for (tenant, model), counts in list(self._waiting.items()):
            if self._file is None:
                return
            try:
                self._file.add(tenant, model, *counts)
            except OSError:
                return
            del self._waiting[tenant, model]

    def _complain(self, error: OSError) -> None:
        """Once until it is mended, not with every request."""
        if not self._waiting:
            logger.error("usage cannot be written to %s: %s; it waits in memory", self._folder, error)

    def _keep_synced(self) -> None:
        while not self._stop.wait(SYNC_SECONDS):
            try:
                while self._left:
                    self._left.pop().close()
                if self._file is not None:
                    self._file.sync()
            except OSError as error:
                logger.error("usage cannot be brought to the disk: %s", error)


def read_usage(folder: Path) -> list[UsageRow]:
    """All that was counted below `folder`, by processes that live and that are gone, ordered by day, tenant and model.

    Raises:
        HeadraceError: the database of those that are gone cannot be read.
    """
    # Files before the database: one that is folded in between is named there, and counted once.
    files = {path: read_counters(path) for path in sorted(folder.glob(f"*/{PATTERN}"))}
    total: dict[tuple[str, str, str], Counter[str]] = {}
    folded: set[str] = set()
    if (folder / DATABASE).exists():
        with _database(folder) as database, database:
            database.execute("BEGIN")
            folded = {file for (file,) in database.execute("SELECT file FROM folded")}
            for day, tenant, model, *counts in database.execute("SELECT * FROM usage"):
                _add(total, UsageRow(day, tenant, model, *counts))
    for path, rows in files.items():
        if _name(path) not in folded:
            for row in rows:
                _add(total, row)
    return [UsageRow(*key, found["requests"], found["rows"], found["tokens"]) for key, found in sorted(total.items())]


def fold(folder: Path) -> int:
    """Moves the counters of processes that are gone into `folder/usage.db`, and gives the number of their files.

    Safe to run at any time, by several at once, and again after it was killed: each file is counted exactly once.

    Raises:
        HeadraceError: the database cannot be written.
    """
    _remove_abandoned(folder)
    gone = list(_gone(folder))
    if not gone:
        return 0
    try:
        with _database(folder) as database:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("DELETE FROM folded WHERE at < ?", (time.time() - REMEMBERED_SECONDS,))
                for path, _ in gone:
                    _take_in(database, path)
            for path, _ in gone:
                path.unlink(missing_ok=True)
    finally:
        for _, descriptor in gone:
            os.close(descriptor)
    return len(gone)


def _take_in(database: sqlite3.Connection, path: Path) -> None:
    """Adds one file's counters, unless an earlier fold was killed between adding and deleting it."""
    added = database.execute("INSERT OR IGNORE INTO folded VALUES (?, ?)", (_name(path), time.time()))
    if added.rowcount:
        database.executemany(ADD, read_counters(path))


def _gone(folder: Path) -> Iterator[tuple[Path, int]]:
    """Files that no living process holds, each locked until its descriptor is closed."""
    for path in sorted(folder.glob(f"*/{PATTERN}")):
        if (descriptor := _lock(path)) is not None:
            if path.exists():  # else another fold has just done with it
                yield path, descriptor
            else:
                os.close(descriptor)


def _lock(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(folder: Path) -> None:
    """Files of processes that were killed before anything could be counted."""
    for path in folder.glob(f"*/.{PATTERN}.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


@contextlib.contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    database = None
    try:
        database = sqlite3.connect(folder / DATABASE, timeout=30, isolation_level=None)
        database.executescript(SCHEMA)
        yield database
    except sqlite3.Error as error:
        raise ServiceError(
            f"the usage of replicas that are gone cannot be read or written: {error}",
            where=str(folder / DATABASE),
            hint=f"restore {DATABASE} from a backup, or move it away to count anew",
        ) from error
    finally:
        if database is not None:
            database.close()


def _add(total: dict[tuple[str, str, str], Counter[str]], row: UsageRow) -> None:
    counts = total.setdefault((row.day, row.tenant, row.model), Counter())
    counts.update(requests=row.requests, rows=row.rows, tokens=row.tokens)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
