"""Usage of each tenant: requests, rows, generated tokens and tokens of prompts by day and model. Light.

A process counts in a memory-mapped file before an answer is sent, so that `kill -9` loses nothing; a thread syncs it to the
disk every second, so that a power cut loses one second. The file is locked while its process lives. `fold` moves the counters
of ended processes into `usage.db`, each file exactly once.
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

from headrace.errors import NewerFile, ServiceError
from headrace.runtime.usage_file import PATTERN, UsageFile, UsageRow, read_usage_file

logger = logging.getLogger("headrace.runtime.usage")
SYNC_SECONDS = 1.0
DAY_SECONDS = 86_400
ABANDONED_SECONDS = 60.0
"""Age at which a temporary file of a killed process is removed."""
REMEMBERED_SECONDS = 86_400.0
"""How long the names of folded files are kept, for readers that read the file just before."""
COUNTS = ("requests", "rows", "tokens", "prompt_tokens")
DATABASE = "usage.db"
SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    day TEXT, tenant TEXT, model TEXT, requests INTEGER, rows INTEGER, tokens INTEGER,
    prompt_tokens INTEGER DEFAULT 0, PRIMARY KEY (day, tenant, model)
);
CREATE TABLE IF NOT EXISTS folded (file TEXT PRIMARY KEY, at REAL);
"""
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
requests = requests + excluded.requests, rows = rows + excluded.rows, tokens = tokens + excluded.tokens,
prompt_tokens = prompt_tokens + excluded.prompt_tokens
"""


class UsageWriter:
    """Counts the usage of this process, in its own file in `folder`. Called from one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: UsageFile | None = None
        self._old_files: list[UsageFile] = []
        self._day = ""
        self._day_ends = 0.0
        self._unwritten: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._start_day(time.time())
        self._thread = threading.Thread(target=self._sync_regularly, name="usage", daemon=True)
        self._thread.start()

    def add(self, tenant: str, model: str, rows: int, tokens: int = 0, requests: int = 1, prompt_tokens: int = 0) -> None:
        """Adds to the counters; afterwards no kill of the process loses them. On a full disk they wait in memory."""
        if (now := time.time()) >= self._day_ends:
            self._start_day(now)
        if self._unwritten and now >= self._retry_at:
            self._write_pending(now)
        if self._file is not None:
            try:
                self._file.add(tenant, model, requests, rows, tokens, prompt_tokens)
                return
            except OSError as error:
                self._log_failure(error)
        before = self._unwritten.get((tenant, model), (0, 0, 0, 0))
        self._unwritten[tenant, model] = (
            before[0] + requests,
            before[1] + rows,
            before[2] + tokens,
            before[3] + prompt_tokens,
        )

    def close(self) -> None:
        """Writes and closes all files."""
        self._stop.set()
        self._thread.join()
        if self._unwritten:
            self._write_pending(time.time())
        for file in [*self._old_files, *([self._file] if self._file else [])]:
            file.close()
        self._file, self._old_files = None, []

    def _start_day(self, now: float) -> None:
        """Opens a file for a new day; yesterday's file will be closed, and can be folded then."""
        if self._file is not None:
            self._old_files.append(self._file)
        self._day = datetime.fromtimestamp(now, UTC).date().isoformat()
        self._day_ends = (now // DAY_SECONDS + 1) * DAY_SECONDS
        self._file = self._open()

    def _open(self) -> UsageFile | None:
        try:
            return UsageFile(self._folder, self._day)
        except OSError as error:
            self._log_failure(error)
            return None

    def _write_pending(self, now: float) -> None:
        """Writes the counts that wait in memory, if there is space now."""
        self._retry_at = now + SYNC_SECONDS
        self._file = self._file or self._open()
        for (tenant, model), counts in list(self._unwritten.items()):
            if self._file is None:
                return
            try:
                self._file.add(tenant, model, *counts)
            except OSError:
                return
            del self._unwritten[tenant, model]

    def _log_failure(self, error: OSError) -> None:
        """Logs once until writing succeeds again, not with every request."""
        if not self._unwritten:
            logger.error("usage cannot be written to %s: %s; it waits in memory", self._folder, error)

    def _sync_regularly(self) -> None:
        while not self._stop.wait(SYNC_SECONDS):
            try:
                while self._old_files:
                    self._old_files.pop().close()
                if self._file is not None:
                    self._file.sync()
            except OSError as error:
                logger.error("usage cannot be synced to the disk: %s", error)


def read_usage(folder: Path) -> list[UsageRow]:
    """Returns all usage below `folder`, of running and ended processes, ordered by day, tenant and model.

    Raises:
        ServiceError: the database of ended processes cannot be read.
    """
    # Read files before the database: a file that is folded in between is listed there, and so counted once.
    files = {path: read_usage_file(path) for path in sorted(folder.glob(f"*/{PATTERN}"))}
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
    return [UsageRow(*key, *(found[name] for name in COUNTS)) for key, found in sorted(total.items())]


def fold(folder: Path) -> int:
    """Moves the counters of ended processes into `folder/usage.db`, and returns the number of their files.

    It is safe to run at any time, several times at once, and again after it was killed: each file is counted exactly once.

    Raises:
        ServiceError: the database cannot be written.
    """
    _remove_abandoned(folder)
    ended = list(_lock_ended(folder))
    if not ended:
        return 0
    try:
        with _database(folder) as database:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("DELETE FROM folded WHERE at < ?", (time.time() - REMEMBERED_SECONDS,))
                for path, _ in ended:
                    _import_file(database, path)
            for path, _ in ended:
                path.unlink(missing_ok=True)
    finally:
        for _, descriptor in ended:
            os.close(descriptor)
    return len(ended)


def _import_file(database: sqlite3.Connection, path: Path) -> None:
    """Adds the counters of a file, unless an earlier fold added it and was killed before deleting it."""
    added = database.execute("INSERT OR IGNORE INTO folded VALUES (?, ?)", (_name(path), time.time()))
    if added.rowcount:
        database.executemany(ADD, read_usage_file(path))


def _lock_ended(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yields files of ended processes, each locked until its descriptor is closed."""
    for path in sorted(folder.glob(f"*/{PATTERN}")):
        if (descriptor := _lock(path)) is not None:
            if path.exists():  # else another fold has just removed it
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
    """Removes temporary files of processes that were killed before they could count anything."""
    for path in folder.glob(f"*/.{PATTERN}.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


@contextlib.contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    database = None
    try:
        database = sqlite3.connect(folder / DATABASE, timeout=30, isolation_level=None)
        _require_known_schema(database, folder / DATABASE)
        _migrate(database)
        yield database
    except sqlite3.Error as error:
        raise ServiceError(
            f"the usage of ended replicas cannot be read or written: {error}",
            where=str(folder / DATABASE),
            hint=f"restore {DATABASE} from a backup, or move it away to start a new one",
        ) from error
    finally:
        if database is not None:
            database.close()


def _require_known_schema(database: sqlite3.Connection, path: Path) -> None:
    (found,) = database.execute("PRAGMA user_version").fetchone()  # 0 in databases that say none: version 1
    if found > SCHEMA_VERSION:
        raise NewerFile(
            f"{path.name} has schema version {found}, and this Headrace knows versions up to {SCHEMA_VERSION}",
            where=str(path),
            hint="run the version of Headrace that wrote it, or restore the file from a backup of this version",
        )


def _migrate(database: sqlite3.Connection) -> None:
    """Makes the tables, and adds the column that a database of version 1 does not have."""
    if database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
        return
    with database:
        database.execute("BEGIN IMMEDIATE")
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(usage)")]
        if columns and "prompt_tokens" not in columns:
            database.execute("ALTER TABLE usage ADD COLUMN prompt_tokens INTEGER DEFAULT 0")
        for statement in SCHEMA.split(";")[:-1]:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _add(total: dict[tuple[str, str, str], Counter[str]], row: UsageRow) -> None:
    counts = total.setdefault((row.day, row.tenant, row.model), Counter())
    counts.update({name: getattr(row, name) for name in COUNTS})


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
