"""What a tenant may keep on disk, and the free space that nobody may use up."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from headrace.errors import DamagedFile
from headrace.project import Project
from headrace.runtime.http import Refused
from headrace.scoring.rows import JSON_LINES
from headrace.services.api.batch_queue import BatchQueue
from headrace.services.api.batch_store import BatchFolder, BatchStore, Progress, Submitted, batch_id, now
from headrace.services.api.disk_limits import FOLDER_BYTES, UploadBudget, require_space
from headrace.services.feedback_store import SCHEMA, FeedbackStore, OverBudget, RecordedAnswer, Truth, database, joined
from headrace.settings import Settings

KIB = 1024
NO_RESERVE = {"disk_reserve_bytes": 0}


def submit(project: Project, tenant: str, size: int) -> BatchFolder:
    store = BatchStore(project)
    incoming = store.incoming()
    (incoming / "parts").mkdir()
    (incoming / "input").write_bytes(b"x" * size)
    accepted = store.accept(incoming, Submitted(batch_id(tenant, "m", ""), "m", tenant, "", None, JSON_LINES, size, "", now()))
    assert accepted is not None
    return accepted


def opened(project: Project) -> BatchQueue:
    queue = BatchQueue(project, store := BatchStore(project))
    for folder in store.open():
        queue.add(folder)
    return queue


def test_open_and_ended_batches_of_a_tenant_count_with_their_answers(tmp_path: Path) -> None:
    project = Project(tmp_path)
    going, ended, foreign = (submit(project, tenant, 10 * KIB) for tenant in ("acme", "acme", "other"))
    going.write_progress(Progress("running", answer_bytes=5 * KIB))
    ended.part_path(0, 3, 0).write_bytes(b"x" * 7 * KIB)
    ended.result.write_bytes(b"x" * KIB)
    ended.write_progress(Progress("done", changed_at=now()))
    queue = opened(project)
    assert not ended.input.exists(), "its rows, which a kill left, are removed"
    assert queue.used_bytes("acme") == 2 * FOLDER_BYTES + (10 + 5 + 7 + 1) * KIB
    assert queue.used_bytes("other") == FOLDER_BYTES + 10 * KIB
    asyncio.run(queue.cancel(ended.path.name))
    assert queue.used_bytes("acme") == FOLDER_BYTES + 15 * KIB
    assert foreign.path.exists()


def test_all_uploads_of_a_tenant_together_stay_within_its_budget(tmp_path: Path) -> None:
    project = Project(tmp_path).using(Settings(tenant_batch_bytes=100 * KIB, **NO_RESERVE))  # type: ignore[arg-type]
    budget = UploadBudget(project)
    with budget.upload("acme") as first, budget.upload("acme") as second, budget.upload("other") as other:
        first.check(used=40 * KIB, size=30 * KIB)
        with pytest.raises(Refused, match="tenant_batch_bytes") as refused:
            second.check(used=40 * KIB, size=0, declared=31 * KIB)
        assert (refused.value.status, refused.value.code) == (413, "over_budget")
        second.check(used=40 * KIB, size=30 * KIB)
        with pytest.raises(Refused):
            second.check(used=40 * KIB, size=31 * KIB)
        other.check(used=0, size=100 * KIB)
    with budget.upload("acme") as later:
        later.check(used=0, size=100 * KIB)


def test_below_the_reserve_of_free_space_nothing_is_accepted_and_batches_wait(tmp_path: Path) -> None:
    project = Project(tmp_path).using(Settings(disk_reserve_bytes=2**62))
    with pytest.raises(Refused, match="disk_reserve_bytes") as refused:
        require_space(project)
    assert (refused.value.status, refused.value.code) == (507, "disk_full")
    folder = submit(project, "acme", KIB)
    asyncio.run((queue := opened(project))._schedule())
    assert (folder.progress.state, (folder.progress.error or {})["code"]) == ("waiting", "disk_full")
    assert queue._active == set()


def test_a_tenant_over_its_budget_waits_until_it_removes_a_batch_and_others_go_on(tmp_path: Path) -> None:
    limit = 3 * FOLDER_BYTES
    project = Project(tmp_path).using(Settings(tenant_batch_bytes=limit, **NO_RESERVE))  # type: ignore[arg-type]
    ended, going, other = submit(project, "acme", KIB), submit(project, "acme", KIB), submit(project, "other", KIB)
    ended.part_path(0, 1, 0).write_bytes(b"x" * 2 * FOLDER_BYTES)
    ended.write_progress(Progress("done", changed_at=now()))
    queue = opened(project)
    asyncio.run(queue._hold_without_space())
    assert queue._next() == [other.path.name]
    assert (going.progress.state, (going.progress.error or {})["code"]) == ("waiting", "over_budget")
    asyncio.run(queue.cancel(ended.path.name))
    asyncio.run(queue._hold_without_space())
    assert going.path.name in queue._next()


def truth(tenant: str, row: int, value: str = "x") -> Truth:
    return Truth(tenant, "trips", "1", f"{tenant}-{row}", row, value)


def test_feedback_for_unknown_requests_and_its_size_are_limited_for_each_tenant(tmp_path: Path) -> None:
    project = Project(tmp_path).using(Settings(tenant_pending_rows=3, tenant_feedback_bytes=3 * KIB))
    store = FeedbackStore(project, 10)
    store.add([truth("acme", row) for row in range(3)], None)
    with pytest.raises(OverBudget, match="tenant_pending_rows") as refused:
        store.add([truth("acme", 2), truth("acme", 3)], None)
    assert refused.value.code == "too_many_pending"
    assert store.add([truth("acme", 2)], None) == 0, "nothing new"
    assert store.add([truth("other", 0)], None) == 1
    recorded = RecordedAnswer(1.0, "r", "acme", "trips", "1", ["x"] * 9)
    assert store.add([truth("acme", 4)], recorded) == 1, "an answer is on record"
    with pytest.raises(OverBudget, match="tenant_feedback_bytes"):
        store.add([truth("acme", 5, "x" * 3000)], recorded)
    assert store.add([truth("acme", 5)], recorded) == 1, "of what was refused nothing is kept"
    store.close()


def test_feedback_from_before_there_were_limits_counts_and_removed_feedback_does_not(tmp_path: Path) -> None:
    project = Project(tmp_path).using(Settings(tenant_pending_rows=2))
    database(project).parent.mkdir(parents=True)
    with sqlite3.connect(database(project)) as old:
        old.executescript(SCHEMA)
        insert = (
            "INSERT INTO feedback (at, tenant, model, version, request_id, row, truth) VALUES (?, 'acme', 'm', '1', ?, 0, '1')"
        )
        old.executemany(insert, [(1.0, "a"), (now(), "b")])
    store = FeedbackStore(project, 10)
    with pytest.raises(OverBudget):
        store.add([truth("acme", 0)], None)
    store._prune(now())
    assert store.add([truth("acme", 0)], None) == 1
    store.close()
    FeedbackStore(project, 10).close()  # opens what it has made


def test_a_damaged_database_of_feedback_is_named_with_its_repair(tmp_path: Path) -> None:
    project = Project(tmp_path)
    database(project).parent.mkdir(parents=True)
    database(project).write_bytes(b"not a database" * 100)
    with pytest.raises(DamagedFile, match=r"feedback\.db: damaged file") as error:
        list(joined(project, "trips"))
    assert (error.value.hint or "").startswith("restore it from a backup; or move it away: mv ")
