"""Prefect's SQLite database: its migrations, run before the server starts, so that an error is reported and undone; and a
transaction of its server that fails beside others."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from headrace.errors import ServiceError
from headrace.tracking.schema_migration import upgrade_schema


def upgrade_database(database: Path) -> Path | None:
    """Migrates the database of an older Prefect, and returns the copy from before; as `upgrade_schema`."""
    return upgrade_schema(database, "prefect", lambda: run_migrations(database))


def run_migrations(database: Path) -> None:
    """Runs those of Prefect's migrations that a database does not have; makes it if there is none.

    Raises:
        ServiceError: a migration failed; with the end of Prefect's output.
    """
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
            cwd=home,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
                "PREFECT_HOME": home,
                "PREFECT_PROFILES_PATH": f"{home}/profiles.toml",
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            output = (done.stderr or done.stdout).strip()[-1000:]
            raise ServiceError(f"Prefect's migrations failed: {output}", where="prefect", hint="make setup")


def let_heartbeats_wait() -> None:
    """Lets the worker's heartbeat wait for other transactions in this process, which is Prefect's server.

    It reads before it writes. When another transaction commits in between, SQLite refuses the write at once ("database is
    locked"), the server logs an error, and closes the worker's connection. A transaction that is begun for writing waits.
    No setting of Prefect does that: it has a write-ahead log and waits 60 s for a lock already, whatever
    `PREFECT_SERVER_DATABASE_TIMEOUT` says, and SQLite does not wait here at all.

    Other transactions that read before they write are repeated: API requests end with 503, upon which clients ask again, and
    the server's own services run again. To begin them all for writing could let one wait for another that it has started.
    """
    begin_mode = importlib.import_module("prefect.server.database.configurations").SQLITE_BEGIN_MODE
    worker_channel: Any = importlib.import_module("prefect.server.utilities.worker_channel")
    persist = worker_channel._persist_worker_channel_heartbeat

    async def persist_for_writing(*arguments: Any, **named: Any) -> Any:
        token = begin_mode.set("IMMEDIATE")  # the transaction begins with its first statement, in there
        try:
            return await persist(*arguments, **named)
        finally:
            begin_mode.reset(token)

    worker_channel._persist_worker_channel_heartbeat = persist_for_writing
