"""Data after a kill at any instant, with a full disk, and while another process holds DVC's lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data.commit import commit_batch
from headrace.data.tables import batch_files
from headrace.data.versions import data_version, is_tracked, track
from headrace.errors import Busy, DiskFull
from headrace.project import Project
from tests.paths import ROOT

CHILD = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from headrace.recipe.recipe import load_recipe
from headrace.data.commit import commit_batch
from headrace.project import Project
root, at = Path(sys.argv[1]), int(sys.argv[2])
project = Project(root)
recipe = load_recipe("toy", project)
count = 0
def watch(event, args):
    # Each change of the file system's names and each file opened for writing is an instant to die at.
    global count
    if event in ("os.rename", "os.mkdir", "os.remove", "os.link") or (event == "open" and args[1] and "w" in str(args[1])):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
commit_batch(pa.table({"x": list(range(100)), "y": [1.0] * 100}), project, recipe, "0001-new.parquet")
print(count)
"""


def child(project: Project, at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(project.root), str(at)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def first(project: Project, recipe: Any, rows: int = 10) -> None:
    commit_batch(pa.table({"x": list(range(rows)), "y": [0.0] * rows}), project, recipe, "0000-first.parquet")


def test_a_kill_at_any_instant_leaves_the_old_or_the_new_version(project: Project, make_recipe: Any) -> None:
    recipe = make_recipe()
    first(project, recipe)
    old = data_version(project, "toy")
    done = child(project, 0)
    assert done.returncode == 0, done.stderr
    new, instants = data_version(project, "toy"), int(done.stdout)
    assert instants >= 4
    seen = set()
    for at in range(1, instants + 1, max(1, instants // 4)):
        (project.raw_data("toy") / "0001-new.parquet").unlink(missing_ok=True)
        track(project)
        killed = child(project, at)
        assert killed.returncode in (-signal.SIGKILL, 0)
        for path in batch_files(project, "toy"):
            pq.read_table(path)  # whole
        found = data_version(project, "toy")
        assert found in (old, new)
        assert [p.name for p in project.raw_data("toy").iterdir() if p.suffix != ".parquet"] == []
        seen.add(found.md5)
        commit_batch(pa.table({"x": list(range(100)), "y": [1.0] * 100}), project, recipe, "0001-new.parquet")  # again
        assert data_version(project, "toy") == new and is_tracked(project)
    assert old.md5 in seen


RECIPE = """
name: toy
task: regression
data: {source: t.csv, target: y}
expect: []
model: {name: mlp}
train: {}
serve: {}
"""


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project on a separate file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    try:
        (root / "recipes").mkdir()
        (root / "dvc.yaml").write_text("stages: {}\n")
        yield Project(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.mark.parametrize("kilobytes", [3000, 1300])
def test_a_full_disk_keeps_the_previous_version(small_disk: Project, kilobytes: int) -> None:
    """3,000 KB do not fit at all; 1,300 KB fit once, but not into DVC's cache as well."""
    from headrace.recipe.recipe import load_recipe

    (small_disk.recipes / "toy.yaml").write_text(RECIPE)
    recipe = load_recipe("toy", small_disk)
    first(small_disk, recipe)
    before = data_version(small_disk, "toy")
    noise = pa.table({"x": [os.urandom(1000) for _ in range(kilobytes)]})
    with pytest.raises(DiskFull) as caught:
        commit_batch(noise, small_disk, recipe, "0001-big.parquet")
    assert "free some space" in str(caught.value.hint)
    assert data_version(small_disk, "toy") == before and is_tracked(small_disk)


@pytest.mark.parametrize("left", [b"", b'{"write": {"/a": {"pid'], ids=["nothing", "half"])
def test_a_damaged_rwlock_does_not_stop_dvc(left: bytes, project: Project, make_recipe: Any) -> None:
    first(project, make_recipe())
    table = project.root / ".dvc" / "tmp" / "rwlock"
    assert table.exists(), "DVC keeps its table elsewhere now"
    table.write_bytes(left)
    (project.raw_data("toy") / "0001-more.parquet").write_bytes((project.raw_data("toy") / "0000-first.parquet").read_bytes())
    track(project)
    assert is_tracked(project) and not any(json.loads(table.read_bytes()).values())


def test_a_held_dvc_lock_is_waited_for_and_then_busy(
    project: Project, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headrace.data import versions

    first(project, make_recipe())
    monkeypatch.setattr(versions, "LOCK_WAITS_SECONDS", (0.01,))
    (project.raw_data("toy") / "0001-more.parquet").write_bytes((project.raw_data("toy") / "0000-first.parquet").read_bytes())
    hold = "import sys, zc.lockfile; lock = zc.lockfile.LockFile(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(project.root / ".dvc" / "tmp" / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        with pytest.raises(Busy):
            track(project)
        holder.stdin.close()
        holder.wait(10)
        track(project)
        assert is_tracked(project)
    finally:
        holder.kill()
        holder.wait()
