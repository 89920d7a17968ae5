"""Tests of the release benchmark: it runs from start to end, its numbers add up, and it cleans up."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect import Task

from benchmarks import release_table
from benchmarks.release import BEGIN, END, write_table
from benchmarks.release_clone import CHECKOUT, TOKEN
from benchmarks.release_processes import ObservedProcess, ProcessMonitor, name_of
from benchmarks.release_steps import FUNCTIONS, IMPORTS, STAGES, Breakdown, Step, stage_seconds
from headrace.services import up

COMMAND = [sys.executable, "-m", "benchmarks.release", "--quick", "--json"]

pytestmark = pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="needs a git checkout")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Returns an environment with a new temporary folder, and checks that nothing is left in it."""
    folder = Path(tempfile.mkdtemp(prefix="hb-"))  # short, because paths of sockets are limited
    yield {**os.environ, "TMPDIR": str(folder)}
    assert _running_in(folder) == []
    left = [path for path in folder.iterdir() if path.name.startswith("headrace")]
    for path in folder.rglob("*"):
        path.chmod(0o700)
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    assert left == []


def _running_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_quick_benchmark_measures_a_real_release_and_cleans_up(scratch: dict[str, str]) -> None:
    done = subprocess.run(COMMAND, cwd=CHECKOUT, env=scratch, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    middle = found["first_release"]["middle_run"]
    parts = sum(middle["orchestration_parts"].values())
    assert parts + middle["own_work"] == pytest.approx(middle["total"], abs=0.5)
    assert middle["own_work"] == pytest.approx(sum(step["own_work"] for step in middle["steps"].values()), abs=0.5)
    assert all(middle["steps"][stage]["own_work"] > 0 for stage in ("validate", "prepare", "train", "export", "evaluate"))
    # nothing changed: no process of a stage ran, and `headrace run` without --force is faster
    again = found["forced"]["middle_run"]["steps"]
    assert all(again[stage]["own_work"] == 0 for stage in ("validate", "prepare", "train", "export", "evaluate"))
    assert found["unchanged"]["headrace run"]["median"] < found["forced"]["seconds"]["median"]
    assert found["unchanged"]["python"]["median"] < found["unchanged"]["headrace run"]["median"]
    assert set(up.NAMES) == found["services"]["memory"].keys()
    assert all(memory["rss_mb"] > 10 for memory in found["services"]["memory"].values())
    assert found["swaps"]["requests"] > 20
    assert found["swaps"]["failed"] == found["changed_release"]["failed"] == 0
    assert "| **Nothing changed**, `headrace run` |" in release_table.render(found)


@pytest.mark.exhaustive
def test_an_interrupted_benchmark_cleans_up(scratch: dict[str, str]) -> None:
    process = subprocess.Popen(COMMAND, cwd=CHECKOUT, env=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any("headrace.services.authentication prefect" in line for line in _running_in(Path(scratch["TMPDIR"]))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "interrupted" in stderr and "Traceback" not in stderr


def test_monitor_measures_memory_and_lifetime_of_a_process_tree() -> None:
    child = "import time; block = bytearray(80_000_000); time.sleep(1.0)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with ProcessMonitor("a-token") as monitor:
        subprocess.run([sys.executable, "-c", code], env={**os.environ, TOKEN: "a-token"}, check=True)
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"], check=True)  # without the token
    lives = sorted(seen.seconds for seen in monitor.seen.values())
    assert len(lives) == 2
    assert lives[0] >= 0.8
    assert 80e6 < monitor.peak.rss < 300e6


def test_processes_get_readable_names() -> None:
    assert name_of(("python", "-m", "headrace.pipeline.stages", "train", "digits")) == "stage train"
    assert name_of(("/bin/sh", "-c", "python -m headrace.pipeline.stages train digits")) == "shell of a stage"
    assert name_of(("python", "-m", "flows", "release", "digits")) == "flow"
    assert name_of(("/usr/bin/git", "status")) == "git"


def test_only_the_process_of_a_stage_counts_for_its_time() -> None:
    monitor = ProcessMonitor("unused")
    train = ("python", "-m", "headrace.pipeline.stages", "train", "digits")
    monitor.seen = {
        1: ObservedProcess(1, 100.0, 104.95, [(100.0, train)]),
        2: ObservedProcess(2, 100.0, 120.0, [(100.0, ("python", "-m", "flows", "release", "digits"))]),
        3: ObservedProcess(3, 50.0, 59.0, [(50.0, train)]),  # of an earlier release
    }
    assert stage_seconds(monitor, "train", after=99.0) == pytest.approx(5.0)
    assert stage_seconds(monitor, "export", after=99.0) == 0


def test_every_task_of_the_release_flow_is_a_step() -> None:
    flow = importlib.import_module("flows.release")
    names = {task.name for task in vars(flow).values() if isinstance(task, Task)}
    assert names == {*STAGES, *FUNCTIONS, *IMPORTS}


def test_orchestration_is_the_total_minus_the_work_of_the_steps() -> None:
    found = Breakdown(10.0, [Step("train", 5.0, 4.5), Step("register", 2.0, 2.0)], {"services start": 3.0, "DVC": 0.5})
    assert found.own == 6.5
    assert found.orchestration == sum(found.overhead.values()) == 3.5


def test_a_new_table_replaces_the_old_one_and_keeps_the_prose(tmp_path: Path) -> None:
    page = tmp_path / "release.md"
    page.write_text(f"# Before\n\n{BEGIN}\n\nold\n\n{END}\n\nAfter.\n")
    write_table("| new |\n", page)
    write_table("| newer |\n", page)
    assert page.read_text() == f"# Before\n\n{BEGIN}\n\n| newer |\n\n{END}\n\nAfter.\n"


def test_cpu_time_of_other_processes_is_counted_separately() -> None:
    burn = "import time; end = time.process_time() + 1.0\nwhile time.process_time() < end: pass"
    with ProcessMonitor("a-token") as ours:
        subprocess.run([sys.executable, "-c", burn], env={**os.environ, TOKEN: "a-token"}, check=True)
    with ProcessMonitor("a-token") as theirs:
        subprocess.run([sys.executable, "-c", burn], check=True)
    own = [last - first for first, last in ours._cpu.values()]
    assert sum(own) == pytest.approx(1.0, abs=0.3)
    assert theirs._cpu == {} and theirs.others > 0.1 / (psutil.cpu_count() or 1)
