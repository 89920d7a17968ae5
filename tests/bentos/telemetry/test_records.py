"""Answers on disk: whole lines, none lost while the disk takes them, and never more than their bounds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bentos.telemetry import records as records_module
from bentos.telemetry.records import Records


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    """Records without a thread, which write when `write` is called."""
    monkeypatch.setattr(records_module, "WRITE_SECONDS", 3600.0)
    found = Records(tmp_path / "usage")
    found.set_model("halves", "3")
    yield found
    found.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("answers-*.jsonl")) for line in file.read_text().splitlines()]


def test_a_record_names_tenant_answer_and_version(records: Records, tmp_path: Path) -> None:
    records.add("r1", "acme", ["upper", 2.5])
    records.write()
    (line,) = lines(tmp_path / "usage")
    assert line.pop("at") > 1e9
    assert line == {"id": "r1", "tenant": "acme", "model": "halves", "version": "3", "answers": ["upper", 2.5]}


def test_the_oldest_files_are_removed(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "FILE_BYTES", 500)
    for i in range(60):
        records.add(f"r{i}", "acme", ["upper"])
        records.write()
    assert len(list((tmp_path / "usage").glob("answers-*.jsonl"))) == records_module.FILES
    kept = [line["id"] for line in lines(tmp_path / "usage")]
    assert kept == [f"r{i}" for i in range(60 - len(kept), 60)]
    assert len(kept) < 60


def test_records_added_during_a_write_are_complete(records: Records, tmp_path: Path) -> None:
    adding = threading.Thread(target=lambda: [records.add(f"r{i}", "acme", ["upper"]) for i in range(20_000)])
    adding.start()
    while adding.is_alive():
        records.write()
    records.write()
    assert [line["id"] for line in lines(tmp_path / "usage")] == [f"r{i}" for i in range(20_000)]


def test_records_wait_while_the_disk_is_full_and_one_line_is_logged(
    records: Records, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "usage").write_text("in the way")
    for i in range(3):
        records.add(f"r{i}", "acme", ["upper"])
        records.write()
    assert len([line for line in caplog.records if "cannot be recorded" in line.message]) == 1
    (tmp_path / "usage").unlink()
    records.write()
    assert [line["id"] for line in lines(tmp_path / "usage")] == ["r0", "r1", "r2"]


def test_records_beyond_the_waiting_limit_are_dropped(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "MAX_BUFFER_BYTES", 1000)
    for i in range(100):
        records.add(f"r{i}", "acme", ["upper"])
    records.write()
    kept = [line["id"] for line in lines(tmp_path / "usage")]
    assert kept == [f"r{i}" for i in range(len(kept))]
    assert 0 < len(kept) < 100
