"""A backup has all state that cannot be made again, is consistent while others write, and is whole or absent."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from filelock import FileLock

from headrace.cli.main import cli
from headrace.errors import Busy, DamagedFile, DiskFull, ServiceError, UsageError
from headrace.project import Project
from headrace.release import journal
from headrace.runtime.usage import fold, read_usage
from headrace.services.backup.backup import back_up
from headrace.services.backup.restore import restore
from headrace.services.backup.snapshot import take_snapshot
from headrace.serving.access import audit
from tests.services.backup.filled_project import BENTO, add_rows, add_usage, clone_of, contents, make_filled_project

KEPT = (
    *("mlruns/mlflow.db", "mlruns/journal.jsonl", "mlruns/audit.jsonl", "mlruns/artifacts/1/model.onnx"),
    *(
        ".headrace/keys/signing.pem",
        ".headrace/keys/tokens.json",
        ".headrace/tls/authority.pem",
        ".headrace/feedback/feedback.db",
    ),
    *(".headrace/quotas/rows-2026-01-01.bin", ".headrace/prefect/prefect.db", ".headrace/token-keys/jwks.json"),
    *(f".headrace/bentoml/{store}/tiny/{BENTO.partition(':')[2]}/file" for store in ("bentos", "models")),
    *("data/tiny/0000-first.parquet", "data.dvc", "dvc.yaml", "headrace.toml", "recipes/new.yaml", "my_model.py"),
)


def silent(line: str) -> None: ...


def names_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return {member.name.removeprefix("files/") for member in tar}


def test_a_backup_holds_what_cannot_be_made_again_and_only_this_user_can_read_it(filled: Project, archive: Path) -> None:
    names = names_in(archive)
    assert {*KEPT} <= names
    assert any(name.startswith(".headrace/usage/tiny-v1-0000/counters-") for name in names)
    assert any(name.startswith(".headrace/batches/") and name.endswith("/input") for name in names)
    assert any(name.startswith(".dvc/cache/files/md5/") for name in names)
    assert not [name for name in names if "2-ffffffff" in name or "/logs/" in name or name.endswith((".lock", "-wal"))]
    assert not [name for name in names if name.startswith((".git/", "headrace/", "bentos/"))], "git holds the code"
    assert archive.stat().st_mode & 0o777 == 0o600
    assert not (filled.state / "snapshot").exists()


def test_equal_files_are_stored_once(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        links = [member.name for member in tar if member.islnk()]
    assert "files/data/tiny/0000-first.parquet" in links, "DVC's cache has the same bytes"


def test_an_earlier_backup_in_the_project_is_not_in_the_next_one(filled: Project) -> None:
    first, second = filled.root / "first.backup", filled.root / "second.backup"
    try:
        back_up(filled, str(first), silent)
        back_up(filled, str(second), silent)
        assert not {"first.backup", "second.backup", ".second.backup.part"} & names_in(second)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)


@contextmanager
def writers(project: Project) -> Iterator[None]:
    """Releases, requests, ended replicas and MLflow's server, all of which write as fast as they can."""
    stop = threading.Event()

    def write_journal() -> None:
        for number in range(10**9):
            if stop.is_set():
                return
            journal.record(project, "refused", "tiny", str(number), {})

    def count_usage() -> None:
        for number in range(10**9):
            if stop.is_set():
                return
            add_usage(project, f"tiny-v1-{number % 3}", rows=1)
            fold(project.usage)

    def write_database() -> None:
        while not stop.is_set():
            add_rows(project.mlflow_database, 10)  # all ten, or none

    threads = [threading.Thread(target=target) for target in (write_journal, count_usage, write_database)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_snapshot_is_consistent_while_everything_writes(tmp_path: Path) -> None:
    project = make_filled_project(tmp_path / "busy")
    before = sum(row.requests for row in read_usage(project.usage))
    with writers(project):
        for number in range(4):
            into = tmp_path / str(number)
            take_snapshot(project, into, silent)
            copy = Project(into)
            assert journal.entries(copy)
            connection = sqlite3.connect(copy.mlflow_database)
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("SELECT count(*) % 10 FROM tried").fetchone() in [(0,), None]
            connection.close()
            counted = sum(row.requests for row in read_usage(copy.usage))
            with sqlite3.connect(copy.usage / "usage.db") as usage:
                usage.execute("UPDATE folded SET at = 0")  # as after more than a day: names of folded files are forgotten
            fold(copy.usage)
            assert sum(row.requests for row in read_usage(copy.usage)) == counted >= before, "each request is counted once"
            before = counted


@pytest.mark.parametrize("scheme", ["memory://", "file://"])
def test_an_object_store_takes_and_gives_backups(scheme: str, filled: Project, tmp_path: Path) -> None:
    address = f"{scheme}{tmp_path}/folder/project.backup"
    storage = fsspec.filesystem(scheme.removesuffix("://"))
    storage.makedirs(f"{tmp_path}/folder", exist_ok=True)
    os.chdir(filled.root)
    done = CliRunner().invoke(cli, ["backup", "--to", address], catch_exceptions=False)
    assert done.exit_code == 0 and f"headrace restore {address}" in done.output
    clone = clone_of(filled, tmp_path / "clone")
    assert restore(clone, address, False, silent)["files"] > len(KEPT)
    assert journal.entries(clone) == journal.entries(filled)
    with pytest.raises(UsageError, match="the object exists"):
        back_up(filled, address, silent)


def test_an_object_of_a_failed_backup_does_not_appear(tmp_path: Path) -> None:
    project = make_filled_project(tmp_path / "broken")
    project.mlflow_database.write_bytes(b"SQLite format 3\0" + bytes(5000))
    for target in (f"memory://{tmp_path}/broken.backup", str(tmp_path / "broken.backup")):
        with pytest.raises(DamagedFile, match=r"cannot be copied") as caught:
            back_up(project, target, silent)
        assert caught.value.where == str(project.mlflow_database)
    assert not fsspec.filesystem("memory").exists(f"{tmp_path}/broken.backup")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"] and not (project.state / "snapshot").exists()


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("nope://bucket/name", UsageError, "nope:// cannot be used"),
        ("missing/folder/file", UsageError, "the folder does not exist"),
        ("recipes/tiny.yaml", UsageError, "the file exists"),
    ],
)
def test_a_target_that_cannot_be_used_is_refused(
    target: str, error: type[Exception], message: str, filled: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled.root)
    with pytest.raises(error, match=message):
        back_up(filled, target, silent)


def test_an_object_store_that_cannot_be_reached_is_named(filled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ServiceError, match="the object store failed") as caught:
        back_up(filled, "s3://bucket/name", silent)
    assert caught.value.where == "s3://bucket/name"


def test_a_full_disk_leaves_no_partial_backup(filled: Project, tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(DiskFull, match=r"no space left to write full\.backup"):
            back_up(filled, str(tmp_path / "full.backup"), silent)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_one_backup_at_a_time_and_a_killed_one_leaves_nothing_in_the_way(filled: Project, tmp_path: Path) -> None:
    with FileLock(filled.locks / "backup.lock"), pytest.raises(Busy, match="another backup"):
        subprocess.run([sys.executable, "-c", ""], check=True)
        back_up(filled, str(tmp_path / "second.backup"), silent)
    (filled.state / "snapshot" / "mlruns").mkdir(parents=True)
    (filled.state / "snapshot" / "mlruns" / "mlflow.db").write_text("of a backup that was killed")
    back_up(filled, str(tmp_path / "third.backup"), silent)
    assert audit.entries(filled)[-1].act == "backup"


def test_a_restored_clone_has_every_file_with_its_mode(filled: Project, archive: Path, tmp_path: Path) -> None:
    clone = clone_of(filled, tmp_path / "elsewhere")
    restore(clone, str(archive), False, silent)
    snapshot = tmp_path / "snapshot"
    take_snapshot(filled, snapshot, silent)
    wanted, found = contents(snapshot), contents(clone.root)
    changed = {"mlruns/mlflow.db", "mlruns/audit.jsonl", ".headrace/anchors/audit.json"}  # paths; entries of both commands
    assert {name: wanted[name] for name in wanted if name not in changed} == {
        name: found[name] for name in wanted if name not in changed
    }
    assert all((clone.state / name).stat().st_mode & 0o777 == 0o700 for name in ("keys", "tls", "batches", "feedback"))
    connection = sqlite3.connect(clone.mlflow_database)
    (location,) = connection.execute("SELECT artifact_location FROM experiments").fetchone()
    connection.close()
    assert location == (clone.mlruns / "artifacts" / "0").as_uri()
    assert audit.entries(clone)[-1].act == "restore"
    assert not clone.restoring.exists()
