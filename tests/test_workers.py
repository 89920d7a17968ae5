"""The test plugin: workers get whole groups, use different ports, and leave no process running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import workers
from tests.paths import ROOT
from tests.ports import lease

SLOPPY = """
import os, pathlib, signal, subprocess, time

def test_leaves_a_program_running():
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    pathlib.Path("left.txt").write_text(f"{left.pid}\\n")
    {then}
"""


def run_in(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Runs the tests in `folder` with the plugin, in a separate process group."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", workers.RUN))}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "tests.workers", "--basetemp", "temporary", *options],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.exhaustive  # checks the tests, not the product
@pytest.mark.parametrize(
    "then", ["time.sleep(600)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["after Ctrl-C", "after the death of a worker"]
)
def test_a_process_that_a_test_leaves_running_ends_with_the_run(then: str, tmp_path: Path) -> None:
    (tmp_path / "test_sloppy.py").write_text(SLOPPY.replace("{then}", then))
    run = run_in(tmp_path, "-n", "1", "--max-worker-restart", "0")
    left, deadline = tmp_path / "left.txt", time.monotonic() + 200
    while not (left.exists() and left.read_text().endswith("\n")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if "sleep" in then:
        os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=200)
    assert "ending a process that a test left running: sleep 600" in output
    assert not psutil.pid_exists(int(left.read_text())), output


RECORDING = """
import pathlib, pytest

@pytest.mark.parametrize("number", range(20))
def test_records_its_worker(number, worker_id):
    with pathlib.Path(__file__).with_suffix(".txt").open("a") as file:
        file.write(worker_id + "\\\\n")
"""


@pytest.mark.exhaustive  # checks the tests, not the product
def test_a_file_goes_to_one_worker(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text(RECORDING)
    output = run_in(tmp_path, "-n", "2").communicate(timeout=200)[0]
    assert "80 passed" in output
    seen = [set((tmp_path / f"test_{name}.txt").read_text().split()) for name in "abcd"]
    assert [len(one) for one in seen] == [1] * 4 and len(set.union(*seen)) == 2


def test_a_block_of_ports_belongs_to_one_process_at_a_time() -> None:
    script = "from tests.ports import lease\nwith lease() as ports: print(ports[0], flush=True); input()"
    start = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    others = [subprocess.Popen([sys.executable, "-c", script], **start) for _ in range(3)]  # type: ignore[call-overload]
    with lease() as mine, lease() as more:
        starts = [mine[0], more[0], *(int(other.stdout.readline()) for other in others)]
        assert len(set(starts)) == 5
    for other in others:
        other.communicate("\n", timeout=60)


def test_the_files_named_in_groups_are_there() -> None:
    assert all((ROOT / file).is_file() for file in workers.PLACES)
    assert len(workers.PLACES) == sum(len(group) for group in workers.GROUPS), "no file is in two groups"
