"""Who holds DVC's lock is said while Headrace waits for it, and when it gives up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.lock import Lock, LockError

from headrace.data import versions
from headrace.errors import Busy
from headrace.project import Project

HOLDER = """
import sys
from dvc.lock import Lock
lock = Lock(sys.argv[1])
lock.lock()
print("held", flush=True)
sys.stdin.readline()
lock.unlock()
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return Project(tmp_path)


@pytest.fixture
def holder(project: Project) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(project.root / ".dvc" / "tmp" / "lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def lock(project: Project) -> None:
    taken = Lock(str(project.root / ".dvc" / "tmp" / "lock"))
    taken.lock()
    taken.unlock()


def test_waiting_for_dvcs_lock_says_for_whom(
    project: Project, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "LOCK_WAITS_SECONDS", (0.1, 0.1))
    with pytest.raises(Busy, match=rf"holds the lock of this project: process {holder.pid} \(.*python.*\)"):
        versions.retry_while_locked(lambda: lock(project), project)
    assert capfd.readouterr().err.count(f"waiting for DVC's lock, held by process {holder.pid} (") == 1

    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait()
    versions.retry_while_locked(lambda: lock(project), project)
    assert capfd.readouterr().err == ""


def test_a_process_that_blocks_the_same_files_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked() -> None:
        raise LockError("'data' is busy, it is being blocked by:\n  (PID 7): dvc repro evaluate@b\n\nIf there are no processes")

    monkeypatch.setattr(versions, "LOCK_WAITS_SECONDS", ())
    with pytest.raises(Busy, match=r"process 7 \(dvc repro evaluate@b\)"):
        versions.retry_while_locked(blocked, project)
