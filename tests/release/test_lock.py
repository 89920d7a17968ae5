"""The lock of a release: it names its holder, and a killed or failed holder gives it up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import Busy
from headrace.project import Project
from headrace.release.lock import began_ns, release_lock, require_no_other_release
from tests.paths import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from headrace.project import Project
from headrace.release.lock import release_lock
with release_lock("tiny", Project(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_release_fails_and_names_the_process_of_the_first(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    message = f"tiny is being released by process {holder.pid} since"
    with pytest.raises(Busy, match=message), release_lock("tiny", Project(tmp_path)):
        pass
    with pytest.raises(Busy, match=message):
        require_no_other_release("tiny", Project(tmp_path))
    with release_lock("other", Project(tmp_path)):
        require_no_other_release("other", Project(tmp_path))


def test_a_killed_holder_loses_the_lock_at_once(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with release_lock("tiny", Project(tmp_path)):
        assert json.loads((tmp_path / ".headrace" / "locks" / "release-tiny.json").read_text())["pid"] == os.getpid()
        assert began_ns("tiny", Project(tmp_path)) > 0
    assert began_ns("tiny", Project(tmp_path)) == 0


def test_a_failed_release_gives_the_lock_back(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), release_lock("tiny", Project(tmp_path)):
            raise ZeroDivisionError
