"""What the product writes is for its user alone; what git tracks has the user's umask; containers read what they need."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.permissions import USER_UMASK, make_private, set_private_umask, tracked_mode
from headrace.project import Project
from headrace.serving.access.keys import write_token_keys
from tests.projects import git, table
from tests.written_files import readable_by_others

HEADRACE = str(Path(sys.executable).with_name("headrace"))


@pytest.fixture
def umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(USER_UMASK, "")
    monkeypatch.delenv(USER_UMASK)
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def headrace(project: Project, *arguments: str) -> None:
    done = subprocess.run([HEADRACE, *arguments], cwd=project.root, capture_output=True, text=True, umask=0o022)
    assert done.returncode == 0, done.stderr


def test_commands_write_private_files_and_leave_those_of_git_to_the_users_umask(project: Project) -> None:
    table(200, seed=3).to_csv(project.root / "more.csv", index=False)
    (project.root / "dvc.yaml").chmod(0o664)
    headrace(project, "new", "other", "--data", "more.csv", "--target", "kind", "--model", "mlp")
    headrace(project, "data", "ingest", "other")
    headrace(project, "tokens", "issue", "--tenant", "acme", "--models", "tiny")
    project.mlruns.chmod(0o700)  # git made it; `headrace up` corrects it
    assert readable_by_others(project) == []
    assert mode(project.root / "dvc.yaml") == 0o664, "a file keeps its mode"
    tracked = {name: mode(project.root / name) for name in ("recipes/other.yaml", "data.dvc")}
    assert tracked == dict.fromkeys(tracked, 0o644)
    assert "data.dvc" in git(project.root, "status", "--porcelain", "--untracked-files=all")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "flows", "release", "nothing"],
        ["-m", "headrace.pipeline.stages", "prepare", "nothing"],
    ],
)
def test_a_program_that_is_started_by_hand_writes_private_files_too(
    command: list[str], project: Project, tmp_path: Path
) -> None:
    """Its umask as it exits, from the module that Python imports first."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, pathlib\n"
        f"atexit.register(lambda: pathlib.Path({str(tmp_path / 'umask')!r}).write_text(oct(os.umask(0))))\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, *command], cwd=project.root, env=variables, capture_output=True, umask=0o022)
    assert (tmp_path / "umask").read_text() == "0o77"


def test_up_corrects_a_project_of_an_older_version_and_leaves_what_containers_use(project: Project, umask: None) -> None:
    write_token_keys(project, "jwks.json", {"keys": []})
    for name in ("usage/r1", "quotas/store", "sockets/tiny-v1-a1b2", "logs", "locks"):
        (project.state / name).mkdir(parents=True)
        (project.state / name / "file").write_text("x")
        (project.state / name / "file").chmod(0o666)
    for name in ("usage/r1", "quotas/store", "sockets/tiny-v1-a1b2"):
        (project.state / name).chmod(0o777)
    for name in ("data/tiny", "mlruns/artifacts/1", "artifacts/tiny/train", ".dvc/cache/files/md5/00"):
        (project.root / name).mkdir(parents=True)
        (project.root / name / "file").write_text("x")
    for name in ("data", "mlruns", "artifacts", ".dvc/cache"):
        (project.root / name).chmod(0o755)
    protected, script = project.root / ".dvc/cache/files/md5/00/file", project.mlruns / "script.sh"
    protected.chmod(0o444)
    script.write_text("x")
    script.chmod(0o755)
    (project.data / "link").symlink_to(project.root / "source.csv")
    make_private(project)
    assert readable_by_others(project) == []
    assert (mode(script), mode(protected), mode(project.root / "source.csv")) == (0o700, 0o444, 0o644)
    assert (mode(project.state / "usage/r1"), mode(project.state / "quotas/store/file")) == (0o777, 0o666)
    assert (mode(project.sockets), mode(project.sockets / "tiny-v1-a1b2"), mode(project.sockets / "tiny-v1-a1b2/file")) == (
        0o700,
        0o777,
        0o666,
    )
    assert (mode(project.token_keys), mode(project.token_keys / "jwks.json")) == (0o755, 0o644)
    assert mode(project.root / "recipes/tiny.yaml") == 0o644


def test_a_cache_that_dvc_shares_with_a_group_stays_shared(project: Project, umask: None) -> None:
    cache = project.root / ".dvc" / "cache"
    cache.mkdir(mode=0o775)
    (project.root / ".dvc" / "config.local").write_text("[cache]\n    shared = group\n")
    before = mode(cache)
    make_private(project)
    assert mode(cache) == before


def test_containers_can_read_token_keys_that_a_private_process_writes(project: Project, umask: None) -> None:
    set_private_umask()
    write_token_keys(project, "revoked.json", {"revoked": []})
    assert (mode(project.token_keys), mode(project.token_keys / "revoked.json")) == (0o755, 0o644)
    assert mode(project.state) == 0o700


def test_a_new_tracked_file_has_the_umask_that_the_user_had(
    tmp_path: Path, umask: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracked_mode(tmp_path / "new") is None
    os.umask(0o002)
    set_private_umask()
    set_private_umask()  # in a process that it started
    assert tracked_mode(tmp_path / "new") == 0o664
    monkeypatch.setenv(USER_UMASK, "nonsense")
    assert tracked_mode(tmp_path / "new") is None
