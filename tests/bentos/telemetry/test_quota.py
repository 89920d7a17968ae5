"""Daily quotas, counted by many processes at once in a folder or in a real Redis."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from bentos.telemetry import quota as quota_module
from bentos.telemetry.quota import LocalStore, Quotas, RedisStore, Store, StoreDown, open_store, seconds_to_next_day
from headrace.runtime.http import Refused
from headrace.runtime.token_verifier import Caller
from tests.paths import ROOT
from tests.ports import free_port
from tests.redis_server import RedisServer

DAY = "2026-11-24"
CALLER = Caller("acme", frozenset({"*"}), "t1", float("inf"), 10)
TAKES = """
import asyncio, sys
from bentos.telemetry.quota import open_store
async def main():
    store = open_store(sys.argv[1])
    granted = 0
    for i in range(400):
        rows = 1 + i % 3
        granted += await store.take("acme", "2026-11-24", rows, 1200)
    print(granted)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture(params=["folder", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(quota_module, "STORE_SECONDS", 10.0)  # how it counts is the question here, on a busy machine too
    if request.param == "folder":
        return str(tmp_path / "quotas")
    server: RedisServer = request.getfixturevalue("redis_server")
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return server.address


def take(store: Store, *rows: int, tenant: str = "acme", limit: int = 10, day: str = DAY) -> list[bool]:
    async def all_of_them() -> list[bool]:
        return [bool(await store.take(tenant, day, count, limit)) for count in rows]

    return asyncio.run(all_of_them())


def opened(address: str) -> Store:
    store = open_store(address)
    assert store is not None
    return store


def test_a_refused_request_takes_no_quota(address: str) -> None:
    assert take(opened(address), 4, 7, 6, 1) == [True, False, True, False]


def test_returned_quota_can_be_taken_again_and_never_more(address: str) -> None:
    assert take(opened(address), 10, -4, 5, 4) == [True, True, False, True]
    assert take(opened(address), -99, 11, 10, tenant="other") == [True, False, True]


def test_tenants_and_days_are_counted_apart(address: str) -> None:
    assert take(opened(address), 10) == [True]
    assert take(opened(address), 10, tenant="other") == [True]
    assert take(opened(address), 10, day="2026-11-25") == [True]
    assert take(opened(address), 1, day="2026-11-25") == [False]


def test_a_part_is_granted_if_it_is_enough(address: str) -> None:
    async def granted() -> list[int]:
        asked, store = [(4, 4), (20, 3), (1, 1), (-2, 1), (5, 3), (5, 2)], opened(address)
        return [await store.take("acme", DAY, amount, 10, least, "tokens") for amount, least in asked]

    assert asyncio.run(granted()) == [4, 6, 0, -2, 0, 2]
    assert take(opened(address), 10) == [True], "rows are counted apart"


def test_a_minute_that_has_ended_is_counted_beside_the_next_one(address: str) -> None:
    async def granted() -> list[int]:
        store = opened(address)
        asked = [(minute, 6) for minute in (41, 42, *range(43, 60), 41)] + [(59, 6), (58, -6), (58, 10)]
        return [
            await store.take("acme", f"2026-11-24T09:{minute}", amount, 10, 1, "tokens-by-minute") for minute, amount in asked
        ]

    found = asyncio.run(granted())
    assert found[:2] == [6, 6] and found[-3:] == [4, -6, 10]


def test_processes_together_grant_exactly_the_quota(address: str) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", TAKES, address], stdout=subprocess.PIPE, cwd=ROOT) for _ in range(3)]
    granted = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(granted) == 1200  # of 799 that each asks for


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    program = TAKES.replace("range(400)", "range(10**9)").replace("1200", "10**12")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    end = time.monotonic() + 20
    while not list(tmp_path.glob("rows-*.bin")) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert take(opened(str(tmp_path)), 1, limit=10**12) == [True]


def test_a_lock_that_is_never_released_counts_as_an_unavailable_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_module, "STORE_SECONDS", 0.05)
    store = opened(str(tmp_path))
    take(store, 1)
    holds = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    (file,) = tmp_path.glob("*.bin")
    holder = subprocess.Popen([sys.executable, "-c", holds, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(StoreDown):
        take(store, 1)
    holder.communicate(b"\n")
    assert take(store, 1) == [True]


def test_a_record_cut_short_by_a_kill_is_ignored(tmp_path: Path) -> None:
    take(opened(str(tmp_path)), 3)
    (file,) = tmp_path.glob("*.bin")
    os.truncate(file, file.stat().st_size + 17)
    assert take(opened(str(tmp_path)), 10, tenant="other") == [True]
    assert take(opened(str(tmp_path)), 8, 7) == [False, True]
    assert take(opened(str(tmp_path)), 1, tenant="other") == [False]


def test_old_days_are_removed(tmp_path: Path) -> None:
    days = [f"2026-11-{day}" for day in range(11, 24)]
    for day in days:
        take(opened(str(tmp_path)), 1, day=day)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"rows-{day}.bin" for day in days[-10:]]


def test_a_clock_that_jumps_ahead_and_back_forgets_no_count(tmp_path: Path) -> None:
    store = opened(str(tmp_path))
    assert take(store, 10) == [True]
    for day in ("2026-11-26", "2026-11-27", "2027-11-24", "2026-11-23"):
        assert take(store, 10, day=day) == [True]
    assert take(store, 1) == [False]


def test_rows_are_returned_to_the_day_that_they_were_taken_from(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quotas, spent = Quotas(opened(address), False, lambda: None), dict[str, int]()

    async def scenario() -> list[bool]:
        monkeypatch.setattr(quota_module, "today", lambda: "2026-11-24")
        found = [await quotas.take(CALLER, 8, spent)]
        monkeypatch.setattr(quota_module, "today", lambda: "2026-11-25")
        found.append(await quotas.take(CALLER, 10))
        await quotas.give_back(CALLER, spent)
        found.append(await quotas.take(CALLER, 1))
        monkeypatch.setattr(quota_module, "today", lambda: "2026-11-24")
        return [*found, await quotas.take(CALLER, 10)]

    assert asyncio.run(scenario()) == [True, True, False, True]


def test_what_was_served_unchecked_is_not_returned() -> None:
    spent = dict[str, int]()
    assert asyncio.run(Quotas(None, True, lambda: None).take(CALLER, 4, spent))
    assert spent == {}


def test_a_file_that_was_cut_is_not_read_as_empty(tmp_path: Path) -> None:
    running = opened(str(tmp_path))
    take(running, 10)
    take(running, 10, tenant="other")
    (file,) = tmp_path.glob("*.bin")
    os.truncate(file, 260)
    for store in (running, opened(str(tmp_path))):
        for tenant in ("acme", "other", "new"):
            with pytest.raises(StoreDown, match=r"damaged file: .* remove rows-2026-11-24\.bin|was cut short"):
                take(store, 1, tenant=tenant)
    file.unlink()  # as the message says
    assert take(running, 10) == [True] and take(opened(str(tmp_path)), 1) == [False]


def test_projects_that_share_a_redis_count_apart(redis_server: RedisServer) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        for project in ("a-1", "b-2"):
            assert take(opened(f"{redis_server.address}#{project}"), 10) == [True]
        assert sorted(client.keys()) == [b"headrace:a-1:rows:2026-11-24:acme", b"headrace:b-2:rows:2026-11-24:acme"]


@pytest.mark.parametrize("serves", [False, True], ids=["closed", "open"])
def test_without_redis_requests_are_refused_or_served_as_configured_and_one_line_is_logged(
    serves: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(quota_module, "RETRY_SECONDS", 0.01)
    server = RedisServer(tmp_path).start()
    unchecked: list[int] = []
    quotas = Quotas(RedisStore(server.address), serves, lambda: unchecked.append(1))

    async def scenario() -> list[bool | int]:
        seen: list[bool | int] = [await quotas.take(CALLER, 4)]
        server.stop()
        for _ in range(3):
            try:
                seen.append(await quotas.take(CALLER, 4))
            except Refused as refused:
                assert refused.headers["retry-after"]
                seen.append(refused.status)
        server.start()
        await asyncio.sleep(0.05)
        return [*seen, await quotas.take(CALLER, 11)]

    try:
        with caplog.at_level(logging.WARNING, "headrace.quota"):
            assert asyncio.run(scenario()) == [True, *([True] * 3 if serves else [503] * 3), False]
    finally:
        server.stop()
    assert len(unchecked) == (3 if serves else 0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_an_unavailable_store_is_not_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Down:
        async def take(self, *_: object) -> bool:
            asked.append(1)
            raise StoreDown("gone")

    quotas = Quotas(Down(), True, lambda: None)
    assert [asyncio.run(quotas.take(CALLER, 1)) for _ in range(5)] == [True] * 5
    assert len(asked) == 1
    monkeypatch.setattr(quotas, "_down_until", 0.0)
    asyncio.run(quotas.take(CALLER, 1))
    assert len(asked) == 2


def test_a_password_in_the_address_is_never_printed() -> None:
    store = RedisStore(f"redis://user:secret@127.0.0.1:{free_port()}")
    with pytest.raises(StoreDown) as down:
        take(store, 1)
    assert "secret" not in str(down.value)


def test_without_a_store_quotas_are_unknown() -> None:
    assert open_store("") is None
    with pytest.raises(Refused) as refused:
        asyncio.run(Quotas(None, False, lambda: None).take(CALLER, 1))
    assert (refused.value.status, refused.value.code) == (503, "quota_unavailable")


def test_the_next_day_is_at_most_a_day_away() -> None:
    assert 1 <= seconds_to_next_day() <= 86_400
    assert isinstance(open_store("/somewhere"), LocalStore)
