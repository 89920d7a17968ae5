"""The outbox: events in the order in which they were published, until every receiver has them. It survives kills and restarts.

SQLite with `synchronous = FULL`: what was published is on disk. Each receiver has a place in the order, and no event passes
another on the way to a receiver. The outbox holds at most `MAX_EVENTS`; beyond that the oldest are dropped, and counted for
each receiver that did not have them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from headrace.errors import DamagedFile
from headrace.event_names import EventName
from headrace.events.event import Event
from headrace.files import require_known_schema
from headrace.project import Project

SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, name TEXT NOT NULL, model TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS receiver (
    key TEXT PRIMARY KEY, label TEXT NOT NULL, events TEXT NOT NULL, place INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0, failed_at REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    gone INTEGER NOT NULL DEFAULT 0, delivered INTEGER NOT NULL DEFAULT 0, delivered_at REAL NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0, dropped_last TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
BUSY_SECONDS = 5.0
MAX_EVENTS = 10_000
SILENT = "silent"
"""Name of a row that is not an event: it keeps one from being published."""
LONGEST_WAIT_SECONDS = 86400.0
"""A next attempt that is further away was set before the clock was set back, and is made at once."""
KEEP_SECONDS = 7 * 86400.0
"""How long events that everybody has are kept, so that one that is found twice is published once."""


@dataclass(frozen=True)
class ReceiverState:
    """How far the deliveries to one receiver are."""

    key: str
    label: str
    """For people; without secrets."""
    events: tuple[EventName, ...]
    place: int
    """`seq` of the last event that was delivered, dropped, or was not meant for it."""
    failures: int
    """Failed attempts in a row."""
    next_at: float
    """When the next attempt is made, in seconds since 1970."""
    failed_at: float
    """When the last attempt failed; 0 after a success."""
    error: str
    """Why it failed."""
    gone: bool
    """Whether it answered 410: nothing is sent to it any more."""
    delivered: int
    delivered_at: float
    dropped: int
    """Events that were given up."""
    dropped_last: str
    """The last of them: time, name, model and reason."""


def database(project: Project) -> Path:
    return project.state / "events" / "outbox.db"


@contextmanager
def opened(project: Project) -> Iterator[sqlite3.Connection]:
    """Opens the outbox, which is made where there is none.

    Raises:
        DamagedFile: the file is not the database of an outbox.
        NewerFile: a newer version of Headrace wrote it.
        sqlite3.OperationalError: it is locked for longer than 5 s, or cannot be written.
    """
    path = database(project)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        (found,) = connection.execute("PRAGMA user_version").fetchone()  # 0 where none is said: version 1
        require_known_schema({"schema_version": found}, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(SCHEMA)
        yield connection
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        hint = f"headrace down; mv {path} {path}.damaged; headrace up (events that were not delivered are lost)"
        raise DamagedFile(f"damaged file: {error}", where=str(path), hint=hint) from None
    finally:
        connection.close()


@contextmanager
def changing(connection: sqlite3.Connection) -> Iterator[None]:
    """Makes the changes of the block all at once, or none of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def add(connection: sqlite3.Connection, event: Event) -> bool:
    """Adds an event at the end; False when one with this id is there already."""
    row = (event.id, event.at, event.name, event.model, event.data_json())
    done = connection.execute("INSERT OR IGNORE INTO event (id, at, name, model, data) VALUES (?, ?, ?, ?, ?)", row)
    if done.rowcount and (seq := done.lastrowid):
        _drop(connection, seq - MAX_EVENTS, f"the outbox held {MAX_EVENTS:,} events")
    return bool(done.rowcount)


def add_silent(connection: sqlite3.Connection, event_id: str) -> None:
    """Notes that an event with this id is not to be published: nobody gets it."""
    row = (event_id, time.time(), SILENT)
    connection.execute("INSERT OR IGNORE INTO event (id, at, name, model, data) VALUES (?, ?, ?, '', '{}')", row)


def receivers(connection: sqlite3.Connection) -> list[ReceiverState]:
    """All receivers, those that are not in the settings any more included."""
    columns = ReceiverState.__dataclass_fields__
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM receiver ORDER BY rowid")  # noqa: S608 - fixed names
    return [_state(dict(zip(columns, row, strict=True))) for row in rows]


def register(connection: sqlite3.Connection, wanted: Sequence[tuple[str, str, Sequence[EventName]]]) -> None:
    """Makes the receivers those of the settings: key, label and events of each.

    A new one gets the events from now on; the first ones of a project get all events that are there.
    """
    with changing(connection):
        before = {state.key for state in receivers(connection)}
        place = _newest(connection) if before else 0
        for key, label, events in wanted:
            connection.execute(
                "INSERT INTO receiver (key, label, events, place) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET label = excluded.label, events = excluded.events",
                (key, label, json.dumps(list(events)), place),
            )
        for key in before - {key for key, _, _ in wanted}:
            connection.execute("DELETE FROM receiver WHERE key = ?", (key,))


def next_event(connection: sqlite3.Connection, receiver: ReceiverState) -> Event | None:
    """The oldest event that a receiver has to get."""
    query, parameters = _pending("seq, id, at, name, model, data", receiver)
    row = connection.execute(f"{query} ORDER BY seq LIMIT 1", parameters).fetchone()
    if row is None:
        return None
    seq, found, at, name, model, data = row
    return Event(cast("EventName", name), model, json.loads(data), found, at, seq)


def count_pending(connection: sqlite3.Connection, receiver: ReceiverState) -> int:
    """How many events a receiver has still to get."""
    query, parameters = _pending("count(*)", receiver)
    return int(connection.execute(query, parameters).fetchone()[0])


def record_delivery(connection: sqlite3.Connection, receiver: ReceiverState, event: Event, now: float) -> None:
    connection.execute(
        "UPDATE receiver SET place = ?, failures = 0, next_at = 0, failed_at = 0, error = '', delivered = delivered + 1, "
        "delivered_at = ? WHERE key = ?",
        (event.seq, now, receiver.key),
    )


def record_failure(
    connection: sqlite3.Connection, receiver: ReceiverState, error: str, now: float, next_at: float, gone: bool = False
) -> None:
    connection.execute(
        "UPDATE receiver SET failures = failures + 1, failed_at = ?, next_at = ?, error = ?, gone = ? WHERE key = ?",
        (now, next_at, error[:500], int(gone), receiver.key),
    )


def record_dropped(connection: sqlite3.Connection, receiver: ReceiverState, event: Event, why: str) -> None:
    """Notes that an event is given up for one receiver, whose next one follows."""
    connection.execute(
        "UPDATE receiver SET place = ?, dropped = dropped + 1, dropped_last = ? WHERE key = ?",
        (event.seq, _dropped(event, why), receiver.key),
    )


def drop_all(connection: sqlite3.Connection, receiver: ReceiverState, why: str) -> None:
    """Drops what a receiver that wants nothing any more has not had."""
    if (count := count_pending(connection, receiver)) and (event := next_event(connection, receiver)):
        connection.execute(
            "UPDATE receiver SET place = ?, dropped = dropped + ?, dropped_last = ? WHERE key = ?",
            (_newest(connection), count, _dropped(event, why), receiver.key),
        )


def resume(connection: sqlite3.Connection, key: str) -> None:
    """Lets the next attempt be made at once, also to a receiver that was gone."""
    connection.execute(
        "UPDATE receiver SET failures = 0, next_at = 0, failed_at = 0, error = '', gone = 0 WHERE key = ?", (key,)
    )


def prune(connection: sqlite3.Connection, now: float) -> None:
    """Removes old events that every receiver has."""
    done = min((state.place for state in receivers(connection)), default=0)
    connection.execute("DELETE FROM event WHERE seq <= ? AND at < ?", (done, now - KEEP_SECONDS))


def read_meta(connection: sqlite3.Connection, name: str) -> Any:
    """The JSON value of this name; None where there is none."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if row is None else json.loads(row[0])


def write_meta(connection: sqlite3.Connection, name: str, value: Any) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))


def due_in(connection: sqlite3.Connection, now: float) -> float | None:
    """Seconds until a delivery is due, 0 for one that is due now; None where nothing is to be delivered."""
    waits = [wait_of(state, now) for state in receivers(connection) if not state.gone and count_pending(connection, state)]
    return min(waits, default=None)


def wait_of(state: ReceiverState, now: float) -> float:
    """Seconds until the next attempt for a receiver."""
    return state.next_at - now if 0.0 < state.next_at - now <= LONGEST_WAIT_SECONDS else 0.0


def _pending(columns: str, receiver: ReceiverState) -> tuple[str, tuple[Any, ...]]:
    marks = ", ".join("?" * len(receiver.events))
    query = f"SELECT {columns} FROM event WHERE seq > ? AND name IN ({marks})"  # noqa: S608 - fixed names
    return query, (receiver.place, *receiver.events)


def _drop(connection: sqlite3.Connection, last: int, why: str) -> None:
    """Removes the events up to `last`, which are the oldest; notes that for the receivers that do not have them."""
    oldest = connection.execute("SELECT min(seq) FROM event").fetchone()[0]
    if oldest is None or oldest > last:
        return
    for state in receivers(connection):
        while state.place < last and (event := next_event(connection, state)) is not None and event.seq <= last:
            record_dropped(connection, state, event, why)
            state = next(one for one in receivers(connection) if one.key == state.key)
    connection.execute("DELETE FROM event WHERE seq <= ?", (last,))


def _dropped(event: Event, why: str) -> str:
    return f"{event.time} {event.type} {event.model}: {why}"[:500]


def _newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT ifnull(max(seq), 0) FROM event").fetchone()[0])


def _state(row: dict[str, Any]) -> ReceiverState:
    return ReceiverState(**{**row, "events": tuple(json.loads(row["events"])), "gone": bool(row["gone"])})
