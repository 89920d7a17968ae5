"""Stores feedback (true answers that clients send later) in SQLite, joined with the answers of the models.

The API server is the only writer. A later truth for the same row replaces an earlier one, which stays in the history. Feedback
older than `feedback_days` is removed at most once a day; the file keeps its size, and its free pages are used again. Answers
come from the records of replicas (`.headrace/usage/<replica>/answers-*.jsonl`), which are rotated, so an answer is copied to
the store as soon as it is found.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import DamagedFile
from headrace.files import require_known_schema
from headrace.project import Project
from headrace.services.answer_index import AnswerIndex

SCHEMA = """
CREATE TABLE IF NOT EXISTS feedback (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
    request_id TEXT NOT NULL, row INTEGER NOT NULL, truth TEXT NOT NULL, answer TEXT, answered_at REAL
);
CREATE INDEX IF NOT EXISTS feedback_by_row ON feedback (tenant, request_id, row);
CREATE INDEX IF NOT EXISTS feedback_by_model ON feedback (model, at);
"""
SIZE = "200 + 2 * length({0}.request_id) + length(CAST({0}.truth AS BLOB)) + ifnull(length(CAST({0}.answer AS BLOB)), 0)"
"""Bytes of a row with its share of the indexes, about."""
USAGE = f"""
CREATE TABLE feedback_usage (tenant TEXT PRIMARY KEY, bytes INTEGER NOT NULL, pending INTEGER NOT NULL);
INSERT INTO feedback_usage
    SELECT tenant, sum({SIZE.format("feedback")}), sum(answered_at IS NULL) FROM feedback GROUP BY tenant;
CREATE TRIGGER feedback_added AFTER INSERT ON feedback BEGIN
    INSERT INTO feedback_usage VALUES (NEW.tenant, {SIZE.format("NEW")}, NEW.answered_at IS NULL)
    ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes, pending = pending + excluded.pending;
END;
CREATE TRIGGER feedback_removed AFTER DELETE ON feedback BEGIN
    UPDATE feedback_usage SET bytes = bytes - ({SIZE.format("OLD")}), pending = pending - (OLD.answered_at IS NULL)
    WHERE tenant = OLD.tenant;
END;
"""  # noqa: S608 - fixed names
"""What each tenant keeps, and how many of its rows have no recorded answer; up to date with each change, by the triggers."""
BUSY_SECONDS = 10.0
DAY_SECONDS = 86400.0


class OverBudget(Exception):
    """The tenant may not store more; `limit` is the value of the setting."""

    def __init__(self, code: str, message: str, limit: int) -> None:
        super().__init__(message)
        self.code, self.message, self.limit = code, message, limit


@dataclass(frozen=True)
class RecordedAnswer:
    """One request as a replica recorded it."""

    at: float
    """Seconds since 1970."""
    request_id: str
    tenant: str
    model: str
    version: str
    answers: list[Any]
    """Label or value of each of the first 100 rows."""


@dataclass(frozen=True)
class Truth:
    """The true answer to one row, as a client sent it."""

    tenant: str
    model: str
    version: str
    request_id: str
    row: int
    truth: Any


class Joined(NamedTuple):
    """A true answer with the model's answer."""

    at: float
    """When the truth was received, in seconds since 1970."""
    version: str
    request_id: str
    row: int
    answer: Any
    truth: Any
    number: int
    """In the order in which truths were received, whatever the clock said."""


class _Row(NamedTuple):
    """A row of the table; `answer` and `truth` are JSON."""

    seq: int
    at: float
    tenant: str
    model: str
    version: str
    request_id: str
    row: int
    truth: str
    answer: str | None
    answered_at: float | None


def database(project: Project) -> Path:
    return project.state / "feedback" / "feedback.db"


def answer_index(project: Project) -> AnswerIndex:
    return AnswerIndex(project.state / "feedback" / "answer-index")


class FeedbackStore:
    """The writer's connection; one thread uses it at a time."""

    def __init__(self, project: Project, keep_days: float) -> None:
        self._keep_seconds = keep_days * DAY_SECONDS
        self._prune_at = 0.0
        self._project, self._index = project, answer_index(project)
        path = database(project)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()  # 0 where none is said: version 1
        require_known_schema({"schema_version": found}, path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")  # accepted feedback survives a power failure
        self._connection.executescript(SCHEMA)
        if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'feedback_usage'").fetchone():
            self._connection.executescript(f"BEGIN IMMEDIATE; {USAGE} COMMIT;")
        self._max_bytes, self._max_pending = project.settings.tenant_feedback_bytes, project.settings.tenant_pending_rows

    def add(self, truths: Sequence[Truth], recorded: RecordedAnswer | None) -> int:
        """Stores the truths of a tenant, all or none, with the answers of `recorded`. Returns how many are new or changed.

        Raises:
            OverBudget: the tenant would exceed `tenant_feedback_bytes` or `tenant_pending_rows`.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            added = sum(self._add(truth, recorded) for truth in truths)
            if added:
                self._check_budget(truths[0].tenant, is_pending=recorded is None)
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        if time.time() >= self._prune_at:
            with contextlib.suppress(
                sqlite3.OperationalError
            ):  # a full disk: the feedback is stored, and the removal is tried again
                self._prune(time.time())
            self._index.remove_others(_files(self._project))
        return added

    def _check_budget(self, tenant: str, is_pending: bool) -> None:
        used, pending = self._connection.execute(
            "SELECT bytes, pending FROM feedback_usage WHERE tenant = ?", (tenant,)
        ).fetchone()
        if used > self._max_bytes:
            message = f"the feedback of {tenant} would take {used:,} of {self._max_bytes:,} bytes (tenant_feedback_bytes)"
            raise OverBudget("over_budget", message, self._max_bytes)
        if is_pending and pending > self._max_pending:
            message = (
                f"{tenant} would have {pending:,} rows of feedback without a recorded answer, and may have "
                f"{self._max_pending:,} (tenant_pending_rows); is the id right?"
            )
            raise OverBudget("too_many_pending", message, self._max_pending)

    def _prune(self, now: float) -> None:
        """Removes old feedback. Rows are in the order of their time, so only these are read."""
        self._prune_at = now + DAY_SECONDS
        kept = self._connection.execute(
            "SELECT seq FROM feedback WHERE at >= ? ORDER BY seq LIMIT 1", (now - self._keep_seconds,)
        ).fetchone()
        if kept is not None:
            self._connection.execute("DELETE FROM feedback WHERE seq < ?", kept)

    def _add(self, truth: Truth, recorded: RecordedAnswer | None) -> bool:
        stored_truth = json.dumps(truth.truth, ensure_ascii=False)
        newest = self._connection.execute(
            "SELECT truth, answered_at FROM feedback WHERE tenant = ? AND request_id = ? AND row = ? ORDER BY seq DESC LIMIT 1",
            (truth.tenant, truth.request_id, truth.row),
        ).fetchone()
        if newest is not None and newest[0] == stored_truth and (newest[1] is not None or recorded is None):
            return False
        answer = json.dumps(_answer(recorded, truth.row), ensure_ascii=False) if recorded else None
        self._connection.execute(
            "INSERT INTO feedback (at, tenant, model, version, request_id, row, truth, answer, answered_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                time.time(),
                truth.tenant,
                truth.model,
                truth.version,
                truth.request_id,
                truth.row,
                stored_truth,
                answer,
                recorded.at if recorded else None,
            ),
        )
        return True

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def _readable(project: Project) -> Iterator[None]:
    """
    Raises:
        DamagedFile: the database cannot be read.
    """
    try:
        yield
    except sqlite3.OperationalError:  # for example locked
        raise
    except sqlite3.DatabaseError as error:
        path = database(project)
        hint = f"restore it from a backup; or move it away: mv '{path}' '{path}.damaged'   (later feedback goes to a new file)"
        raise DamagedFile(f"damaged file: {error}", where=str(path), hint=hint) from None


def joined(project: Project, model: str, since: float = 0.0) -> Iterator[Joined]:
    """Yields each row's latest truth with the model's answer, oldest first.

    Truths whose answer was not recorded, or not kept, are left out.

    Args:
        since: truths received before this time (seconds since 1970) are left out.
    """
    if not database(project).exists():
        return
    connection = sqlite3.connect(f"file:{database(project)}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    with _readable(project), contextlib.closing(connection):
        stored = connection.execute(
            f"SELECT {', '.join(_Row._fields)} FROM feedback WHERE seq IN "  # noqa: S608 - fixed names
            "(SELECT max(seq) FROM feedback WHERE model = ? GROUP BY tenant, request_id, row) AND at >= ? ORDER BY seq",
            (model, since),
        ).fetchall()
    found = [_Row(*values) for values in stored]
    wanted = {(row.tenant, row.request_id, row.version) for row in found if row.answered_at is None}
    late = {key: record for record in all_recorded(project) if (key := _key(record)) in wanted} if wanted else {}
    for row in found:
        record = late.get((row.tenant, row.request_id, row.version))
        known = json.loads(row.answer) if row.answer is not None else _answer(record, row.row) if record else None
        if known is not None:
            yield Joined(row.at, row.version, row.request_id, row.row, known, json.loads(row.truth), row.seq)


def corrected_rows(project: Project, model: str, version: str) -> int:
    """Returns the number of rows for which different true answers were received; the latest of each counts."""
    if not database(project).exists():
        return 0
    connection = sqlite3.connect(f"file:{database(project)}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    with _readable(project), contextlib.closing(connection):
        (found,) = connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM feedback WHERE model = ? AND version = ? "
            "GROUP BY tenant, request_id, row HAVING count(DISTINCT truth) > 1)",
            (model, version),
        ).fetchone()
    return int(found)


def truths_of(project: Project, model: str, rows: Iterable[tuple[str, str, int]]) -> Iterator[Any]:
    """Yields the latest truth of each row, given as tenant, request id and row number; None for a row without one."""
    if not database(project).exists():
        yield from (None for _ in rows)
        return
    connection = sqlite3.connect(f"file:{database(project)}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    with _readable(project), contextlib.closing(connection):
        for tenant, request_id, row in rows:
            found = connection.execute(
                "SELECT truth FROM feedback WHERE tenant = ? AND request_id = ? AND row = ? AND model = ? "
                "ORDER BY seq DESC LIMIT 1",
                (tenant, request_id, row, model),
            ).fetchone()
            yield json.loads(found[0]) if found else None


def find_recorded(
    project: Project, tenant: str, request_id: str, version: str | None = None, others: Collection[str] = ()
) -> RecordedAnswer | None:
    """Returns the newest record of a tenant's request; None when no replica has one.

    Args:
        version: the version that answered, if known: a shadow answers the same request too.
        others: ids of replicas whose answers are discarded.
    """
    wanted, index = json.dumps(request_id).encode(), answer_index(project)
    for path in _files(project):
        if path.parent.name in others:
            continue
        try:
            first = index.search_from(path, request_id)
        except FileNotFoundError:  # rotated away
            continue
        for line in _lines_with(wanted, path, first):
            found = _record(line)
            if found and (found.tenant, found.request_id, found.version) == (tenant, request_id, version or found.version):
                return found
    return None


def _lines_with(wanted: bytes, path: Path, first: int) -> Iterator[bytes]:
    """Yields the lines of a file, from byte `first` on, that contain `wanted`, from its end; 100 MB take about 10 ms."""
    with (
        contextlib.suppress(FileNotFoundError, ValueError),  # rotated away, or empty
        path.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        end = len(content)
        while (place := content.rfind(wanted, first, end)) >= 0:
            start, stop = content.rfind(b"\n", 0, place) + 1, content.find(b"\n", place)
            yield content[start : stop if stop >= 0 else len(content)]
            end = start


def all_recorded(project: Project) -> Iterator[RecordedAnswer]:
    """Yields all records of replicas that still exist, newest files first."""
    for path in _files(project):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as handle:
            for line in handle:
                if found := _record(line):
                    yield found


def _key(record: RecordedAnswer) -> tuple[str, str, str]:
    return record.tenant, record.request_id, record.version


def _files(project: Project) -> list[Path]:
    found = []
    for path in project.usage.glob("*/answers-*.jsonl"):
        try:
            found.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:  # rotated away meanwhile
            continue
    return [path for _, path in sorted(found, reverse=True)]


def _record(line: bytes) -> RecordedAnswer | None:
    """Parses a line; None for one that is incomplete."""
    try:
        values = json.loads(line)
        return RecordedAnswer(
            values["at"], values["id"], values["tenant"], values["model"], str(values["version"]), values["answers"]
        )
    except (ValueError, KeyError, TypeError):
        return None


def _answer(record: RecordedAnswer, row: int) -> Any:
    return record.answers[row] if row < len(record.answers) else None
