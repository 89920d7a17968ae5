"""Which batch is started next."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace.project import Project
from headrace.services.api.batch_queue import AT_ONCE, BatchQueue
from headrace.services.api.batch_store import JSON_LINES, BatchFolder, BatchStore, Progress, Submitted, batch_id, now

DAY = 86400.0


def submit(store: BatchStore, tenant: str, at: float) -> BatchFolder:
    incoming = store.incoming()
    (incoming / "input").write_text("{}\n")
    submitted = Submitted(batch_id(tenant, "m", ""), "m", tenant, "", None, JSON_LINES, 3, "", at)
    accepted = store.accept(incoming, submitted)
    assert accepted is not None
    return accepted


def chosen(project: Project) -> list[str]:
    """Tenants whose batches come first, in a queue that has just been opened."""

    async def scenario() -> list[str]:
        store = BatchStore(project)
        queue = BatchQueue(project, store, DAY)
        for folder in store.open():
            queue.add(folder)
        return [queue._known[batch].tenant for batch in queue._next()]

    return asyncio.run(scenario())


def test_a_tenant_with_many_batches_does_not_keep_another_waiting(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for second in range(5):
        submit(BatchStore(project), "greedy", 100.0 + second)
    submit(BatchStore(project), "modest", 200.0)
    assert chosen(project) == ["greedy", "modest"]
    assert AT_ONCE == 2


def test_a_waiting_or_ended_batch_is_not_started(tmp_path: Path) -> None:
    project = Project(tmp_path)
    submit(BatchStore(project), "early", 1.0).write_progress(Progress("waiting", waits_until=now() + 60))
    submit(BatchStore(project), "done", 2.0).write_progress(Progress("done"))
    submit(BatchStore(project), "due", 3.0).write_progress(Progress("waiting", waits_until=now() - 1))
    submit(BatchStore(project), "cut off", 4.0).write_progress(Progress("running", rows_done=1000))
    assert chosen(project) == ["due", "cut off"]


def test_an_upload_that_the_end_of_the_api_server_interrupted_is_removed_at_its_start(tmp_path: Path) -> None:
    project = Project(tmp_path)
    store = BatchStore(project)
    (store.incoming() / "input").write_text("half a file")
    submit(store, "whole", 1.0)
    assert [folder.submitted.tenant for folder in store.open()] == ["whole"]
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []


def test_only_batches_that_ended_long_ago_are_removed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    store = BatchStore(project)
    submit(store, "old", 1.0).write_progress(Progress("done", changed_at=now() - 2 * DAY))
    submit(store, "new", 2.0).write_progress(Progress("failed", changed_at=now() - DAY / 2))
    submit(store, "waiting", 3.0).write_progress(Progress("waiting", waits_until=now() + 60, changed_at=now() - 2 * DAY))

    async def left() -> set[str]:
        async with BatchQueue(project, store, DAY) as queue:
            async with asyncio.timeout(10):
                while len(queue.all()) == 3:
                    await asyncio.sleep(0.01)
            return {one.tenant for one in queue.all()}

    assert asyncio.run(left()) == {"new", "waiting"}
    assert {folder.submitted.tenant for folder in store.open()} == {"new", "waiting"}
