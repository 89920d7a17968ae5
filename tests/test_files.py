"""Files are written completely or not at all, also after a kill or on a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.errors import DamagedFile, DiskFull
from headrace.files import (
    atomic_write,
    create_secret,
    is_disk_full,
    read_cached_json,
    read_json,
    remove_partial_files,
    visible_names,
    write_json,
    write_text,
    write_with,
)
from headrace.runtime.usage_file import UsageFile
from tests.paths import ROOT


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on" / "the way.json"
    write_json(path, {"ü": [1, None]})
    assert read_json(path) == {"ü": [1, None]}
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert read_json(path) == {"ü": [1, None]}, "readers see the old file until the new one is whole"
    assert path.read_text() == "new"
    assert names(path.parent) == ["the way.json"]


def test_the_folder_is_synced_after_the_rename(tmp_path: Path) -> None:
    """As a trace of system calls shows it: without that sync a power failure could bring the old name back."""
    child = (
        f"from pathlib import Path; from headrace.files import write_text; write_text(Path({str(tmp_path / 'file')!r}), 'x')"
    )
    log = tmp_path / "trace"
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    subprocess.run(
        ["strace", "-f", "-y", "-e", "trace=fsync,rename", "-o", str(log), sys.executable, "-c", child],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    calls = log.read_text()
    assert f"<{tmp_path}>" in calls[calls.index("rename(") :], calls


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_text(folder / "file", "x"),
        lambda folder: create_secret(folder / "file", "x"),
        lambda folder: UsageFile(folder, "2026-11-24").close(),
    ],
    ids=["written files", "secrets", "usage files"],
)
def test_a_new_name_survives_a_power_failure(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is synced when the file has its name."""
    synced: list[list[str]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            synced.append([path.name for path in tmp_path.iterdir() if not path.name.startswith(".")])

    monkeypatch.setattr(os, "fsync", record)
    write(tmp_path)
    assert synced and synced[-1]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "input/output error")])
def test_an_exception_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["kept"]


@pytest.mark.parametrize("event", ["os.rename", "half"])
def test_a_kill_leaves_the_old_file(event: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_text(path, "old")
    child = f"""
import os, signal, sys
from pathlib import Path
from headrace.files import atomic_write
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(lambda name, _: die() if name == {event!r} else None)
with atomic_write(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    if {event!r} == "half":
        die()
"""
    done = subprocess.run([sys.executable, "-c", child], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\xff\xfe"])
def test_a_damaged_json_file_is_an_error_and_not_absent(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="not valid JSON") as damaged:
        read_json(path, hint="run `repair`")
    assert (damaged.value.where, damaged.value.hint) == (str(path), "run `repair`")
    assert read_cached_json(path) is None, "a cache is written again"


def test_files_that_a_killed_process_was_writing_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, beside = tmp_path / "a" / "b" / f".x.json.{ended.pid}.part", tmp_path / f".x.{ended.pid}.part"
    kept = [tmp_path / "a" / f".x.{os.getpid()}.part", tmp_path / "usage" / f".x.{ended.pid}.part", tmp_path / "a" / "x.part"]
    for path in (left, beside, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert remove_partial_files(tmp_path, ("usage",)) == [beside, left]
    assert all(path.exists() for path in kept) and not left.exists() and not beside.exists()


def test_an_absent_json_file_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent.json") is None
    assert read_cached_json(tmp_path / "absent.json") is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def _bytes(path: Path) -> None:
    path.write_bytes(bytes(3_000_000))


def _checkpoint(path: Path) -> None:
    import torch

    from headrace.training import checkpoint

    checkpoint.write({"weights": torch.zeros(750_000)}, path)


def _parquet(path: Path) -> None:
    import numpy as np
    import pandas as pd

    pd.DataFrame({"a": np.random.default_rng(0).random(400_000)}).to_parquet(path)


def _arrays(path: Path) -> None:
    import numpy as np

    from headrace.pipeline.evaluate import save_arrays

    save_arrays(path, np.zeros(400_000), np.zeros(2))


@pytest.mark.parametrize("write", [_bytes, _checkpoint, _parquet, _arrays])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(write: Callable[[Path], None], small_disk: Path) -> None:
    path = small_disk / "kept"
    write_text(path, "old")
    with pytest.raises(DiskFull, match="no space left to write kept") as caught:
        write_with(path, write)
    assert caught.value.where == str(small_disk) and "free some space" in str(caught.value.hint)
    assert path.read_text() == "old" and names(small_disk) == ["kept"]


def test_a_full_disk_is_detected_as_the_cause_of_other_errors() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 (as torch does)
    except RuntimeError as error:
        assert is_disk_full(error)
    assert is_disk_full(OSError("17881 requested and 6128 written"))  # as NumPy does
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied")) and not is_disk_full(None)


def test_hidden_files_and_folders_are_no_names_that_an_error_lists(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("b.csv", ".gitignore", "a.csv"):
        (tmp_path / name).touch()
    assert visible_names(tmp_path) == ["a.csv", "b.csv"]
    assert visible_names(tmp_path / "none") == []
