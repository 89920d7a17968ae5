"""Transactions of Prefect's server, on a copy of its migrated database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from headrace.services.prefect_database import run_migrations
from headrace.tracking.database_templates import copy_template

HEARTBEAT = """
import asyncio, sqlite3, sys
import sqlalchemy as sa
from prefect.client.schemas.worker_channel import WorkerHeartbeatFrame
from prefect.server import models, schemas
from prefect.server.database import provide_database_interface
from prefect.server.utilities import worker_channel
from headrace.services.prefect_database import let_heartbeats_wait

database, is_waiting = sys.argv[1], sys.argv[2] == "waiting"
record, others = models.workers.record_worker_heartbeat, []

async def record_after_another_commit(**named):
    other = sqlite3.connect(database, timeout=0.1)
    try:
        with other:
            other.execute("UPDATE work_pool SET description = 'changed'")
        others.append("committed")
    except sqlite3.OperationalError:
        others.append("waits")
    finally:
        other.close()
    return await record(**named)

async def main():
    db = provide_database_interface()
    async with db.session_context(begin_transaction=True) as session:
        pool = schemas.actions.WorkPoolCreate(name="headrace", type="process")
        await models.workers.create_work_pool(session=session, work_pool=pool)
    models.workers.record_worker_heartbeat = record_after_another_commit
    async with db.session_context() as session:
        for name in ("journal_mode", "busy_timeout"):
            others.append((await session.execute(sa.text(f"PRAGMA {name}"))).scalar())
    payload = PAYLOAD.model_construct(worker_name="local", heartbeat_interval_seconds=30)
    frame = WorkerHeartbeatFrame.model_construct(payload=payload)
    async with db.session_context(begin_transaction=True) as session:
        await worker_channel._persist_worker_channel_heartbeat(session=session, work_pool_name="headrace", frame=frame)

PAYLOAD = WorkerHeartbeatFrame.model_fields["payload"].annotation
if is_waiting:
    let_heartbeats_wait()
try:
    asyncio.run(main())
except Exception as error:
    print(others, type(error).__name__, str(error).splitlines()[0])
else:
    print(others, "recorded")
"""


def heartbeat(tmp_path: Path, how: str) -> str:
    """What happens to a heartbeat while another transaction commits between its read and its write."""
    database = tmp_path / how / "prefect.db"
    database.parent.mkdir()
    if not copy_template("prefect", database):
        run_migrations(database)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(database.parent),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
    }
    command = [sys.executable, "-c", HEARTBEAT, str(database), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_heartbeat_of_the_worker_is_recorded_while_others_write(tmp_path: Path) -> None:
    """Prefect has a write-ahead log and waits a minute for a lock, but for no lock that another transaction has overtaken."""
    as_prefect_does = heartbeat(tmp_path, "as Prefect does")
    assert "database is locked" in as_prefect_does, "Prefect has corrected it: remove our correction"
    assert as_prefect_does.startswith("['wal', 60000, 'committed']"), "its settings, none of which helps here"
    assert heartbeat(tmp_path, "waiting") == "['wal', 60000, 'waits'] recorded"
