"""A restore changes nothing before the whole archive is checked, deletes nothing, and is undone or finished after a failure."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.errors import Busy, DamagedFile, HeadraceError, UsageError
from headrace.project import Project
from headrace.release import journal
from headrace.services import prefect, up
from headrace.services.backup.archive import FORMAT
from headrace.services.backup.restore import restore
from headrace.serving.replicas.programs import SUPERVISED
from headrace.settings import Settings
from headrace.tracking.database_templates import copy_template
from tests.paths import ROOT
from tests.services.backup.filled_project import clone_of, contents

Member = tuple[tarfile.TarInfo, bytes]


def silent(line: str) -> None: ...


@pytest.fixture
def clone(filled: Project, tmp_path: Path) -> Project:
    return clone_of(filled, tmp_path / "clone")


def rewritten(archive: Path, place: Path, change: Callable[[list[Member]], list[Member]]) -> Path:
    """The archive with other members."""
    with tarfile.open(archive) as tar:
        members = [(member, handle.read() if (handle := tar.extractfile(member)) else b"") for member in tar]
    with tarfile.open(place, "w:gz") as tar:
        for info, content in change(members):
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return place


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b"hostile"


def with_format(number: int) -> Callable[[list[Member]], list[Member]]:
    def change(members: list[Member]) -> list[Member]:
        return [(members[0][0], json.dumps({"format": number, "of": "the future"}).encode()), *members[1:]]

    return change


def refused(clone: Project, source: Path, error: type[HeadraceError], message: str) -> None:
    before = contents(clone.root)
    with pytest.raises(error, match=message) as caught:
        restore(clone, str(source), False, silent)
    assert caught.value.hint and str(source) in str(caught.value.where)
    assert contents(clone.root) == before and not clone.restoring.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        member("/etc/passwd"),
        member("files//etc/passwd"),
        member("files/../outside"),
        member("files/mlruns/../../outside"),
        member("files/.git/hooks/post-checkout"),
        member("files/recipes/.git/config"),
        member("files/.venv/bin/python"),
        member("files/"),
        member("files/mlruns/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("files/mlruns/link", tarfile.LNKTYPE, "files/../../outside"),
        member("files/mlruns/link", tarfile.LNKTYPE, "files/not/there"),
        member("files/mlruns/device", tarfile.CHRTYPE),
        member("files/mlruns/pipe", tarfile.FIFOTYPE),
        member("files/mlruns/journal.jsonl"),
        member("files/mlruns/journal.jsonl/below"),
        member("files/not-in-the-manifest"),
    ],
    ids=lambda found: found[0].name,
)
def test_hostile_members_are_refused(hostile: Member, archive: Path, clone: Project, tmp_path: Path) -> None:
    bad = rewritten(archive, tmp_path / "bad.backup", lambda members: [*members[:-1], hostile, members[-1]])
    refused(clone, bad, DamagedFile, "the backup is refused")
    assert not (tmp_path / "outside").exists()


def test_changed_bytes_are_refused(archive: Path, clone: Project, tmp_path: Path) -> None:
    def change(members: list[Member]) -> list[Member]:
        return [
            (info, content.replace(b"tiny", b"TINY") if info.name.endswith("journal.jsonl") else content)
            for info, content in members
        ]

    refused(clone, rewritten(archive, tmp_path / "bad.backup", change), DamagedFile, "mlruns/journal.jsonl has sha256")
    missing = rewritten(
        archive, tmp_path / "missing.backup", lambda members: [m for m in members if "signing" not in m[0].name]
    )
    refused(clone, missing, DamagedFile, r"keys/signing\.pem is missing")


def is_same(packed: bytes, other: bytes) -> bool:
    """Whether both hold the same bytes: one flip in a hundred only refers to another copy of them."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        return gzip.decompress(packed) == gzip.decompress(other)
    return False


def test_a_truncated_or_flipped_archive_is_refused(archive: Path, clone: Project, tmp_path: Path) -> None:
    content, bad = archive.read_bytes(), tmp_path / "bad.backup"
    rng = random.Random(1)
    for length in [0, 1, 5, 100, len(content) - 9, *(rng.randrange(len(content) - 9) for _ in range(4))]:
        bad.write_bytes(content[:length])
        refused(clone, bad, HeadraceError, "not a backup of Headrace|the backup is refused")
    for _ in range(4):
        flipped = content
        while is_same(flipped, content):
            place = rng.randrange(30, len(content) - 9)
            flipped = content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
        bad.write_bytes(flipped)
        refused(clone, bad, HeadraceError, "not a backup of Headrace|the backup is refused")


def test_other_files_and_newer_formats_are_refused(archive: Path, clone: Project, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for content in (b"text", gzip.compress(b"text"), b"\x1f\x8b"):
        other.write_bytes(content)
        refused(clone, other, UsageError, "not a backup of Headrace")
    refused(clone, tmp_path / "missing", UsageError, "no such backup")
    newer = rewritten(archive, tmp_path / "newer.backup", with_format(FORMAT + 1))
    refused(clone, newer, UsageError, f"the backup has format {FORMAT + 1}; this Headrace .* reads formats up to {FORMAT}")
    refused(clone, rewritten(archive, tmp_path / "none.backup", with_format(0)), DamagedFile, "cannot be read")


def test_state_is_never_replaced_unasked_and_never_deleted(archive: Path, clone: Project) -> None:
    journal.record(clone, "released", "other", "7", {})
    (clone.root / "headrace.toml").write_text("drain_seconds = 1.0\n")
    before = contents(clone.root)
    with pytest.raises(UsageError, match=r"the project has state already: mlruns/journal\.jsonl") as caught:
        restore(clone, str(archive), False, silent)
    assert "--replace" in str(caught.value.hint) and contents(clone.root) == before
    facts = restore(clone, str(archive), True, silent)
    aside = clone.root / facts["set_aside"]
    assert [entry.model for entry in journal.entries(clone)] == ["tiny"]
    assert "other" in (aside / "mlruns" / "journal.jsonl").read_text()
    assert (aside / "headrace.toml").read_text() == "drain_seconds = 1.0\n" and aside.stat().st_mode & 0o777 == 0o700
    kept = contents(aside)
    assert {name: before[name] for name in before if name.startswith("mlruns/")}.items() <= kept.items()


def test_a_file_that_git_does_not_hold_is_not_replaced(archive: Path, clone: Project) -> None:
    (clone.recipes / "new.yaml").write_text("name: another\n")
    with pytest.raises(UsageError, match=r"recipes/new\.yaml differs from the one in the backup, and git does not hold it"):
        restore(clone, str(archive), False, silent)
    assert (clone.recipes / "new.yaml").read_text() == "name: another\n" and not clone.journal.exists()


def test_running_services_are_refused(archive: Path, clone: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    server = subprocess.Popen(["sleep", "60"], env={**os.environ, SUPERVISED: clone.label})
    try:
        monkeypatch.chdir(clone.root)
        done = CliRunner().invoke(cli, ["restore", str(archive), "--replace"])
        assert isinstance(done.exception, Busy) and "headrace down" in str(done.exception)
    finally:
        server.kill()
        server.wait()


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from headrace.project import Project
from headrace.services.backup.restore import restore
left = int(sys.argv[3])
def interrupt(event, arguments):
    global left
    if event == "os.rename" and ".headrace-restore/files" in str(arguments[0]):
        left -= 1
        if left == 0:
            {how}
sys.addaudithook(interrupt)
restore(Project(Path(sys.argv[1])), sys.argv[2], True, lambda line: None)
"""


def interrupt(clone: Project, archive: Path, how: str, after: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(how=how), str(clone.root), str(archive), str(after)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_a_failure_while_files_are_moved_is_undone(archive: Path, clone: Project) -> None:
    journal.record(clone, "released", "other", "7", {})
    before = contents(clone.root)
    done = interrupt(clone, archive, "raise OSError(5, 'Input/output error')", after=12)
    assert done.returncode == 1 and "Input/output error" in done.stderr
    assert contents(clone.root) == before and not clone.restoring.exists()


def test_a_kill_while_files_are_moved_is_reported_until_the_restore_is_repeated(archive: Path, clone: Project) -> None:
    journal.record(clone, "released", "other", "7", {})
    assert interrupt(clone, archive, "os.kill(os.getpid(), signal.SIGKILL)", after=12).returncode == -signal.SIGKILL
    for attempt in (lambda: up.up(clone, silent), lambda: restore(clone, str(archive), False, silent)):
        with pytest.raises(HeadraceError, match="an earlier restore was interrupted") as caught:
            attempt()
        assert "--replace" in str(caught.value.hint)
    restore(clone, str(archive), True, silent)
    assert [entry.model for entry in journal.entries(clone)] == ["tiny"]
    assert any("other" in path.read_text() for path in clone.root.glob("before-restore-*/mlruns/journal.jsonl"))


def test_prefects_database_has_a_write_ahead_log_again_before_its_server_starts(
    clone: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup holds databases as one file, in another mode, which a server cannot change while several threads open it."""
    database = clone.state / "prefect" / "prefect.db"
    assert copy_template("prefect", database)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    modes = []

    def launch(*_: object) -> None:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            modes.append(connection.execute("PRAGMA journal_mode").fetchone()[0])

    monkeypatch.setattr(prefect, "launch", launch)
    prefect.launch_server(clone.using(Settings()), silent)
    assert modes == ["wal"]
