"""Counters that survive their process: real processes, really killed."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.errors import ServiceError
from headrace.runtime import usage as usage_module
from headrace.runtime import usage_file
from headrace.runtime.usage import DATABASE, UsageWriter, fold, read_usage
from headrace.runtime.usage_file import RECORD, UsageRow, read_usage_file

ADDS = """
from pathlib import Path
from headrace.runtime.usage import UsageWriter
writer = UsageWriter(Path(sys.argv[1]))
for i in range(10**9):
    writer.add(f"tenant{i % 3}", "digits", rows=2, tokens=5)
    os.write(1, b".")  # the answer leaves
"""
FOLDS = """
from pathlib import Path
from headrace.runtime import usage
{damage}
usage.fold(Path(sys.argv[1]))
"""


def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    code = "import os, sys\n" + textwrap.dedent(program)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)


@contextmanager
def opened(folder: Path) -> Iterator[UsageWriter]:
    writer = UsageWriter(folder)
    try:
        yield writer
    finally:
        writer.close()


def gone(folder: Path, *adds: tuple[str, str, int]) -> Path:
    """A replica's folder whose process has ended after these."""
    with opened(folder) as writer:
        for tenant, model, rows in adds:
            writer.add(tenant, model, rows)
    (path,) = folder.glob(usage_file.PATTERN)
    return path


def rows_of(folder: Path) -> dict[tuple[str, str], tuple[int, int]]:
    return {(row.tenant, row.model): (row.requests, row.rows) for row in read_usage(folder)}


def test_usage_is_summed_by_day_tenant_and_model(tmp_path: Path) -> None:
    with opened(tmp_path / "r1") as writer:
        writer.add("acme", "digits", 3)
        writer.add("acme", "digits", 4)
        writer.add("acme", "stories", 1, tokens=20, prompt_tokens=7)
        writer.add("acme", "stories", 0, tokens=5, requests=0)
        today = time.strftime("%Y-%m-%d", time.gmtime())
        assert read_usage(tmp_path) == [
            UsageRow(today, "acme", "digits", 2, 7, 0),
            UsageRow(today, "acme", "stories", 1, 1, 25, 7),
        ]
        before = read_usage(tmp_path)
    fold(tmp_path)
    assert read_usage(tmp_path) == before


def test_usage_of_an_earlier_version_has_no_tokens_of_prompts(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        columns = "day TEXT, tenant TEXT, model TEXT, requests INTEGER, rows INTEGER, tokens INTEGER"
        database.execute(f"CREATE TABLE usage ({columns}, PRIMARY KEY (day, tenant, model))")
        database.execute("CREATE TABLE folded (file TEXT PRIMARY KEY, at REAL)")
        database.execute("INSERT INTO usage VALUES ('2026-11-24', 'acme', 'stories', 2, 3, 50)")
    old = UsageRow("2026-11-24", "acme", "stories", 2, 3, 50, 0)
    assert read_usage(tmp_path) == [old]
    gone(tmp_path / "r1", ("acme", "digits", 1))
    fold(tmp_path)
    fold(tmp_path)
    assert old in read_usage(tmp_path) and len(read_usage(tmp_path)) == 2


def test_a_killed_process_has_lost_no_usage_of_sent_answers(tmp_path: Path) -> None:
    process = start(ADDS, str(tmp_path / "r1"))
    assert process.stdout is not None
    answered = len(process.stdout.read(2000))
    process.send_signal(signal.SIGKILL)
    answered += len(process.stdout.read())
    process.wait()
    for _ in range(2):
        found = read_usage(tmp_path)
        for counted, each in (("requests", 1), ("rows", 2), ("tokens", 5)):
            in_flight = sum(getattr(row, counted) for row in found) - each * answered
            assert in_flight in (0, each), counted  # one request may have been counted, or in part, but not answered
        fold(tmp_path)


def test_replicas_count_concurrently_in_files_of_their_own(tmp_path: Path) -> None:
    program = ADDS.replace("10**9", "3000")
    processes = [start(program, str(tmp_path / replica)) for replica in ("r1", "r2", "r2")]
    for process in processes:
        assert process.communicate(timeout=60)[0] == b"." * 3000
    assert len(list(tmp_path.glob("*/*.bin"))) == 3
    assert sum(row.requests for row in read_usage(tmp_path)) == 9000
    assert fold(tmp_path) == 3
    assert sum(row.requests for row in read_usage(tmp_path)) == 9000


def test_a_living_process_keeps_its_file(tmp_path: Path) -> None:
    with opened(tmp_path / "r1") as writer:
        writer.add("acme", "digits", 3)
        assert fold(tmp_path) == 0
        writer.add("acme", "digits", 4)
    assert fold(tmp_path) == 1
    assert rows_of(tmp_path) == {("acme", "digits"): (2, 7)}
    assert list((tmp_path / "r1").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        "usage.read_usage_file = lambda path: os._exit(9)",
        "take = usage._import_file\nusage._import_file = lambda *found: (take(*found), os._exit(9))",
        "Path.unlink = lambda path, **_: os._exit(9)",
        "unlink = Path.unlink\nPath.unlink = lambda path, **_: (unlink(path), os._exit(9))",
    ],
    ids=["before adding", "before the commit", "before deleting", "amid deleting"],
)
def test_a_fold_killed_between_any_two_steps_loses_and_doubles_nothing(tmp_path: Path, damage: str) -> None:
    for replica in ("r1", "r2"):
        gone(tmp_path / replica, ("acme", "digits", 5))
    process = start(FOLDS.replace("{damage}", damage), str(tmp_path))
    process.communicate(timeout=60)
    assert process.returncode == 9
    for _ in range(3):
        assert rows_of(tmp_path) == {("acme", "digits"): (2, 10)}
        fold(tmp_path)
    assert list(tmp_path.glob("*/*.bin")) == []


def test_concurrent_folds_count_each_file_once(tmp_path: Path) -> None:
    for replica in range(12):
        gone(tmp_path / f"r{replica}", ("acme", "digits", 1))
    with ThreadPoolExecutor(4) as pool:
        folded = list(pool.map(lambda _: fold(tmp_path), range(8)))
    assert rows_of(tmp_path) == {("acme", "digits"): (12, 12)}
    assert sum(folded) >= 12  # one that was counted by another may be deleted by both


def test_a_reader_beside_a_fold_counts_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has read the file before it is folded, and the database after."""
    gone(tmp_path / "r1", ("acme", "digits", 5))
    gone(tmp_path / "r2", ("acme", "digits", 5))
    fold(tmp_path)
    gone(tmp_path / "r3", ("acme", "digits", 5))

    def read_then_fold(path: Path) -> list[UsageRow]:
        found = read_usage_file(path)
        monkeypatch.undo()
        fold(tmp_path)
        return found

    monkeypatch.setattr(usage_module, "read_usage_file", read_then_fold)
    assert rows_of(tmp_path) == {("acme", "digits"): (3, 15)}


def test_a_damaged_record_loses_no_other_record(tmp_path: Path) -> None:
    path = gone(tmp_path / "r1", *[(f"tenant{i}", "digits", i) for i in range(1, 6)])
    content = bytearray(path.read_bytes())
    content[2 * RECORD + usage_file.KEY_AT] ^= 0xFF
    path.write_bytes(content)
    assert {tenant for tenant, _ in rows_of(tmp_path)} == {"tenant1", "tenant2", "tenant4", "tenant5"}


@pytest.mark.parametrize("size", [0, 1, RECORD - 1, 2 * RECORD + 100])
def test_a_truncated_file_loses_only_the_cut_records(tmp_path: Path, size: int) -> None:
    path = gone(tmp_path / "r1", *[(f"tenant{i}", "digits", i) for i in range(1, 6)])
    os.truncate(path, size)
    gone(tmp_path / "r2", ("acme", "digits", 1))
    for _ in range(2):
        assert len(rows_of(tmp_path)) == size // RECORD + 1
        fold(tmp_path)


def test_a_file_grows_with_its_tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_file, "GROWTH", 8)
    with opened(tmp_path / "r1") as writer:
        for _ in range(2):
            for i in range(100):
                writer.add(f"tenant{i}", "digits", i)
    assert rows_of(tmp_path) == {(f"tenant{i}", "digits"): (2, 2 * i) for i in range(100)}


def test_a_new_day_begins_a_new_file_and_the_old_one_can_be_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "SYNC_SECONDS", 0.01)
    with opened(tmp_path / "r1") as writer:
        writer.add("acme", "digits", 1)
        tomorrow = time.time() + 86_400
        monkeypatch.setattr(usage_module.time, "time", lambda: tomorrow)  # type: ignore[attr-defined]
        writer.add("acme", "digits", 2)
        end = time.monotonic() + 10
        while not fold(tmp_path) and time.monotonic() < end:
            time.sleep(0.01)
        days = [(row.day, row.rows) for row in read_usage(tmp_path)]
        assert [rows for _, rows in days] == [1, 2]
        assert days[1][0] == time.strftime("%Y-%m-%d", time.gmtime(tomorrow))


def test_on_a_full_disk_usage_waits_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files stands for the disk's end; the kernel refuses in the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened(tmp_path / "r1") as writer:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (usage_file.GROWTH * RECORD, limits[1]))
            for i in range(usage_file.GROWTH + 20):
                writer.add(f"tenant{i:03}", "digits", 1)
                writer.add(f"tenant{i:03}", "digits", 2)
            assert len(rows_of(tmp_path)) == usage_file.GROWTH
            assert caplog.text.count("it waits in memory") == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    found = rows_of(tmp_path)
    assert len(found) == usage_file.GROWTH + 20
    assert set(found.values()) == {(2, 3)}


def test_a_name_longer_than_a_record_is_cut(tmp_path: Path) -> None:
    with opened(tmp_path / "r1") as writer:
        writer.add("ü" * 500, "digits", 1)
        writer.add("ü" * 500, "digits", 1)
    assert rows_of(tmp_path) == {("ü" * 100, "digits"): (2, 2)}


def test_a_database_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    gone(tmp_path / "r1", ("acme", "digits", 1))
    (tmp_path / DATABASE).write_bytes(b"no database at all, " * 100)
    for act in (fold, read_usage):
        with pytest.raises(ServiceError, match="hint: restore"):
            act(tmp_path)
    assert list(tmp_path.glob("*/*.bin"))


def test_nothing_was_used_where_nothing_ran(tmp_path: Path) -> None:
    assert read_usage(tmp_path / "nowhere") == []
    assert fold(tmp_path / "nowhere") == 0


def test_what_is_known_of_folded_files_is_forgotten_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "REMEMBERED_SECONDS", -1.0)
    for replica in range(3):
        gone(tmp_path / f"r{replica}", ("acme", "digits", 1))
        fold(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as database:
        assert database.execute("SELECT count(*) FROM folded").fetchone() == (1,)
    database.close()
