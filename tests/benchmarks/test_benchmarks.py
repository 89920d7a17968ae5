"""The release benchmark runs from start to end, its numbers add up, and it leaves nothing behind."""

from __future__ import annotations

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

from benchmarks import release_table
from benchmarks.release import BEGIN, END, write_table
from benchmarks.release_clone import CHECKOUT, TOKEN
from benchmarks.release_processes import Seen, Watch, name_of
from benchmarks.release_steps import Breakdown, Step, stage_seconds
from headrace.services import up

COMMAND = [sys.executable, "-m", "benchmarks.release", "--quick", "--json"]

pytestmark = pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="the benchmark clones, and this is no git checkout")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary folder is the test's own, so that what is left there can be seen."""
    folder = Path(tempfile.mkdtemp(prefix="hb-"))  # short: sockets lie there
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


@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="minutes long: LONG_TESTS=1 make unit")
@pytest.mark.timeout(900)
def test_the_quick_benchmark_measures_a_real_release_and_leaves_nothing(scratch: dict[str, str]) -> None:
    done = subprocess.run(COMMAND, cwd=CHECKOUT, env=scratch, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    middle = found["first_release"]["middle_run"]
    parts = sum(middle["orchestration_parts"].values())
    assert parts + middle["own_work"] == pytest.approx(middle["whole"], abs=0.5)
    assert middle["own_work"] == pytest.approx(sum(step["own_work"] for step in middle["steps"].values()), abs=0.5)
    assert all(middle["steps"][stage]["own_work"] > 0 for stage in ("validate", "prepare", "train", "export", "evaluate"))
    # nothing changed: no stage's process ran, and the short way is the shorter one
    again = found["forced"]["middle_run"]["steps"]
    assert all(again[stage]["own_work"] == 0 for stage in ("validate", "prepare", "train", "export", "evaluate"))
    assert found["unchanged"]["headrace run"]["median"] < found["forced"]["seconds"]["median"]
    assert found["unchanged"]["python"]["median"] < found["unchanged"]["headrace run"]["median"]
    assert set(up.NAMES) == found["services"]["memory"].keys()
    assert all(memory["rss_mb"] > 10 for memory in found["services"]["memory"].values())
    assert found["swaps"]["requests"] > 20
    assert found["swaps"]["failed"] == found["changed_release"]["failed"] == 0
    assert "| **Nothing changed**, `headrace run` |" in release_table.render(found)


def test_an_interrupted_benchmark_leaves_nothing(scratch: dict[str, str]) -> None:
    process = subprocess.Popen(COMMAND, cwd=CHECKOUT, env=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any("prefect server start" in line for line in _running_in(Path(scratch["TMPDIR"]))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said


def test_a_process_tree_is_seen_with_its_memory_and_its_life() -> None:
    child = "import time; held = bytearray(80_000_000); time.sleep(1.0)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with Watch("a-token") as watch:
        subprocess.run([sys.executable, "-c", code], env={**os.environ, TOKEN: "a-token"}, check=True)
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)"], check=True)  # carries no token
    lives = sorted(seen.seconds for seen in watch.seen.values())
    assert len(lives) == 2
    assert lives[0] >= 0.8
    assert 80e6 < watch.peak.rss < 300e6


def test_a_process_is_named_by_what_it_does() -> None:
    assert name_of(("python", "-m", "headrace.pipeline.stages", "train", "digits")) == "stage train"
    assert name_of(("/bin/sh", "-c", "python -m headrace.pipeline.stages train digits")) == "shell of a stage"
    assert name_of(("python", "-m", "flows", "release", "digits")) == "flow"
    assert name_of(("/usr/bin/git", "status")) == "git"


def test_a_stage_is_timed_by_its_own_process_alone() -> None:
    watch = Watch("unused")
    train = ("python", "-m", "headrace.pipeline.stages", "train", "digits")
    watch.seen = {
        1: Seen(1, 100.0, 104.95, [(100.0, train)]),
        2: Seen(2, 100.0, 120.0, [(100.0, ("python", "-m", "flows", "release", "digits"))]),
        3: Seen(3, 50.0, 59.0, [(50.0, train)]),  # of an earlier release
    }
    assert stage_seconds(watch, "train", after=99.0) == pytest.approx(5.0)
    assert stage_seconds(watch, "export", after=99.0) == 0


def test_orchestration_is_the_whole_less_the_steps_own_work() -> None:
    found = Breakdown(10.0, [Step("train", 5.0, 4.5), Step("register", 2.0, 2.0)], {"services start": 3.0, "DVC": 0.5})
    assert found.own == 6.5
    assert found.orchestration == sum(found.overhead.values()) == 3.5


def test_a_new_table_takes_the_old_ones_place_and_the_prose_stays(tmp_path: Path) -> None:
    page = tmp_path / "release.md"
    page.write_text(f"# Before\n\n{BEGIN}\n\nold\n\n{END}\n\nAfter.\n")
    write_table("| new |\n", page)
    write_table("| newer |\n", page)
    assert page.read_text() == f"# Before\n\n{BEGIN}\n\n| newer |\n\n{END}\n\nAfter.\n"


def test_work_of_others_is_told_from_our_own() -> None:
    burn = "import time; end = time.process_time() + 1.0\nwhile time.process_time() < end: pass"
    with Watch("a-token") as ours:
        subprocess.run([sys.executable, "-c", burn], env={**os.environ, TOKEN: "a-token"}, check=True)
    with Watch("a-token") as theirs:
        subprocess.run([sys.executable, "-c", burn], check=True)
    own = [last - first for first, last in ours._cpu.values()]
    assert sum(own) == pytest.approx(1.0, abs=0.3)
    assert theirs._cpu == {} and theirs.others > 0.1 / (psutil.cpu_count() or 1)
