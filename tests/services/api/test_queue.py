"""Which batch is started next."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

import pytest

from headrace.files import write_json
from headrace.project import Project
from headrace.scoring.rows import JSON_LINES
from headrace.services.api import batch_queue
from headrace.services.api.batch_queue import AT_ONCE, BatchQueue
from headrace.services.api.batch_rows import damaged_parts
from headrace.services.api.batch_store import DAMAGED, BatchFolder, BatchStore, Progress, Submitted, batch_id, now
from headrace.services.api.internal_tokens import REVOKED
from headrace.serving.access import tokens
from headrace.settings import Settings

DAY = 86400.0


def submit(store: BatchStore, tenant: str, at: float, jti: str = "") -> BatchFolder:
    incoming = store.incoming()
    (incoming / "input").write_text("{}\n")
    submitted = Submitted(batch_id(tenant, "m", ""), "m", tenant, jti, None, JSON_LINES, 3, "", at)
    accepted = store.accept(incoming, submitted)
    assert accepted is not None
    return accepted


def chosen(project: Project) -> list[str]:
    """Tenants whose batches come first, in a queue that has just been opened."""

    async def scenario() -> list[str]:
        store = BatchStore(project)
        queue = BatchQueue(project, store)
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
    submit(store, "waiting", now()).write_progress(Progress("waiting", waits_until=now() + 60, changed_at=now() - 2 * DAY))

    async def left() -> set[str]:
        async with BatchQueue(project.using(Settings(batch_days=1)), store) as queue:
            async with asyncio.timeout(10):
                while len(queue.all()) == 3:
                    await asyncio.sleep(0.01)
            return {one.tenant for one in queue.all()}

    assert asyncio.run(left()) == {"new", "waiting"}
    assert {folder.submitted.tenant for folder in store.open()} == {"new", "waiting"}


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '{"id": 1}', "\0\0\0"])
def test_a_batch_that_cannot_be_read_is_set_aside_and_the_others_go_on(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = Project(tmp_path)
    store = BatchStore(project)
    damaged, whole = submit(store, "unlucky", 1.0), submit(store, "lucky", 2.0)
    (damaged.path / "batch.json").write_text(content)
    for _ in range(2):  # also at the next start
        assert chosen(project) == ["lucky"]
        assert [folder.path for folder in store.open()] == [whole.path]
    assert (store.damaged / damaged.path.name / "input").read_text() == "{}\n", "nothing is lost"
    assert (store.damaged / damaged.path.name / "batch.json").read_text() == content
    assert store.set_aside_at(damaged.path.name) is not None and store.set_aside_at("0" * 32) is None
    assert f"{damaged.path.name} cannot be read, and was moved to {store.damaged}" in caplog.text


def test_a_batch_of_a_later_version_is_read_without_the_fields_that_it_added(tmp_path: Path) -> None:
    project = Project(tmp_path)
    folder = submit(BatchStore(project), "acme", 1.0)
    for name, values in (("batch.json", asdict(folder.submitted)), ("progress.json", asdict(Progress("queued", 7)))):
        write_json(folder.path / name, {**values, "of_a_later_version": 1})
    assert chosen(project) == ["acme"]
    assert (folder.submitted.tenant, folder.progress.rows_done) == ("acme", 7)


@pytest.mark.parametrize("content", ["", "null", '{"state": "unheard of"}', '{"rows_done": "many"}'])
def test_a_state_that_cannot_be_read_does_not_stop_a_batch_that_has_its_rows_nor_the_others(
    content: str, tmp_path: Path
) -> None:
    project = Project(tmp_path)
    store = BatchStore(project)
    going, ended = submit(store, "going", 1.0), submit(store, "ended", 2.0)
    ended.input.unlink()
    for folder in (going, ended):
        (folder.path / "progress.json").write_text(content)
        assert (folder.progress.state, folder.progress.error) == ("failed", DAMAGED)
    assert chosen(project) == ["going"]
    assert (ended.progress.state, ended.progress.error) == ("failed", DAMAGED)
    assert (going.path / "progress.json.damaged").read_text() == content


def test_damaged_parts_are_found_and_foreign_files_left_alone(tmp_path: Path) -> None:
    folder = submit(BatchStore(Project(tmp_path)), "acme", 1.0)
    (folder.path / "parts").mkdir()
    for index, lines in enumerate(['{"row":0}\n{"row":1}\n', '{"row":2}\n{"ro', '{"row":4}\n{"row":5}\n', "\0" * 20]):
        folder.part_path(index, 2, 0).write_text(lines)
    for foreign in ("notes.jsonl", "1-2.jsonl", ".00000009-1-0.jsonl.part"):
        (folder.path / "parts" / foreign).write_text("?")
    folder.part_path(5, 2, 0).touch()  # after a gap
    assert [part.index for part in folder.parts()] == [0, 1, 2, 3]
    assert [(part.index, first) for part, first in damaged_parts(folder.parts())] == [(1, 2), (3, 6)]


def scheduled(project: Project) -> None:
    """Lets a queue look once at its open batches, which all wait."""

    async def scenario() -> None:
        queue = BatchQueue(project, store := BatchStore(project))
        for folder in store.open():
            queue.add(folder)
        await queue._schedule()

    asyncio.run(scenario())


def waiting(folder: BatchFolder) -> BatchFolder:
    folder.write_progress(Progress("waiting", 5, waits_until=now() + 3600, error={"code": "quota_exceeded"}, changed_at=now()))
    return folder


def test_revoking_a_tenant_ends_its_batches_also_one_that_waits_and_was_sent_with_an_expired_token(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (_, expired), (_, valid), (_, other) = (tokens.issue(project, name, ["m"], 60) for name in ("acme", "acme", "other"))
    listed = project.keys / "tokens.json"
    listed.write_text(listed.read_text().replace(f'"expires": {expired.expires}', f'"expires": {int(now()) - 3600}', 1))
    store = BatchStore(project)
    own = [waiting(submit(store, "acme", now(), facts.jti)) for facts in (expired, valid)]
    foreign = waiting(submit(store, "other", now(), other.jti))
    scheduled(project)
    assert {folder.progress.state for folder in own} == {"waiting"}
    assert {facts.jti for facts in tokens.revoke(project, "acme")} == {expired.jti, valid.jti}
    assert {expired.jti, valid.jti} <= set(tokens.revoked_ids(project)), "tokens made for its batches are refused too"
    scheduled(project)
    assert [(folder.progress.state, folder.progress.error) for folder in own] == [("failed", REVOKED)] * 2
    assert not own[0].input.exists()
    assert foreign.progress.state == "waiting"


def test_a_batch_that_is_not_done_in_time_fails_whatever_it_waits_for(tmp_path: Path) -> None:
    project = Project(tmp_path).using(Settings(batch_open_days=2))
    late, new = (waiting(submit(BatchStore(project), "acme", now() - days * DAY)) for days in (2.1, 1.9))
    scheduled(project)
    assert (late.progress.state, (late.progress.error or {})["code"]) == ("failed", "overdue")
    assert "2 days (batch_open_days)" in (late.progress.error or {})["message"] and not late.input.exists()
    assert new.progress.state == "waiting"


def test_a_damaged_list_of_tokens_stops_no_batch_and_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = Project(tmp_path)
    project.keys.mkdir(parents=True)
    (project.keys / "tokens.json").write_text("{}")
    folder = waiting(submit(BatchStore(project), "acme", now()))

    async def scenario() -> None:
        queue = BatchQueue(project, BatchStore(project))
        queue.add(folder)
        for _ in range(3):
            await queue._schedule()

    asyncio.run(scenario())
    assert folder.progress.state == "waiting"
    assert caplog.text.count("revoked tokens cannot be read") == 1


def test_a_batch_yields_to_a_tenant_that_has_none_in_progress_and_tenants_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    names = {submit(BatchStore(project), tenant, now() + at).path.name: tenant for at, tenant in enumerate("AAABC")}
    monkeypatch.setattr(batch_queue, "TURN_SECONDS", 0.0)
    turns: list[str] = []

    async def endless(self: BatchQueue, batch_id: str) -> None:
        """In place of a worker: a process that ends by the signal."""
        turns.append(names[batch_id])
        process = await asyncio.create_subprocess_exec("sleep", "60")
        self._processes[batch_id] = process
        await process.wait()
        del self._processes[batch_id]
        self._active.discard(batch_id)
        self._yielding.discard(batch_id)

    monkeypatch.setattr(BatchQueue, "_work", endless)

    async def scenario() -> None:
        queue = BatchQueue(project, store := BatchStore(project))
        for folder in store.open():
            queue.add(folder)
        async with asyncio.timeout(30):
            while len(turns) < 6:
                await queue._schedule()
                await asyncio.sleep(0.01)
        for process in list(queue._processes.values()):
            process.kill()
        await asyncio.gather(*queue._tasks)

    asyncio.run(scenario())
    assert turns[:2] == ["A", "B"], "of different tenants where there are some"
    assert set(turns[:3]) == {"A", "B", "C"} and set(turns[3:6]) <= {"A", "B", "C"}
    assert all(turns[place] != turns[place + 1] for place in range(5)), turns


def test_a_batch_is_removed_between_its_last_row_and_the_end_of_its_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        queue = BatchQueue(project := Project(tmp_path), store := BatchStore(project))
        queue.add(folder := submit(store, "acme", 1.0))
        queue._active.add(folder.path.name)
        folder.write_progress(Progress("done"))
        asyncio.get_running_loop().call_later(0.1, queue._active.discard, folder.path.name)
        assert (await queue.cancel(folder.path.name)).state == "done"
        assert queue.all() == [] and queue.count_open("acme") == 0
        await queue._schedule()

    asyncio.run(scenario())


def test_a_batch_does_not_yield_while_no_other_tenant_waits(tmp_path: Path) -> None:
    queue = BatchQueue(project := Project(tmp_path), BatchStore(project))
    for at in range(3):
        queue.add(submit(BatchStore(project), "only", at))
    queue._active = set(queue._next())
    assert len(queue._active) == AT_ONCE and queue._to_yield() is None
