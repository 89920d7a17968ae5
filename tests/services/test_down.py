"""`headrace down` where files cannot be written: what runs ends, and one error lists the files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.services import up
from headrace.services.service import settings_environment
from headrace.serving.access import audit
from headrace.serving.gateway import gateway
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.ports import is_free
from tests.serving.served_project import CHAMPION, ServedProject, open_served_project


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedProject]:
    with open_served_project(tmp_path / "clone") as found:
        found.roll_out(CHAMPION, replicas=1)
        yield found


@pytest.fixture
def read_only(served: ServedProject) -> Iterator[Path]:
    """The project on a read-only disk: a mount over its folder, so that files that are open stay open."""
    root = str(served.project.root)

    def mount(*arguments: str) -> bool:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0

    if os.getuid() != 0 or not mount("--bind", root, root):
        pytest.skip("only root can mount a disk, and not in every container")
    try:
        if not mount("-o", "remount,bind,ro", root):
            pytest.skip("a mount cannot be made read-only here")
        yield served.project.root
    finally:
        subprocess.run(["umount", root], check=True)


def down(project: Project) -> subprocess.CompletedProcess[str]:
    """`headrace down --json`."""
    command = [sys.executable, "-c", "from headrace.cli.main import main; main()", "down", "--json"]
    return subprocess.run(command, env={**os.environ, **settings_environment(project)}, capture_output=True, text=True)


def test_on_a_read_only_disk_everything_ends_and_one_error_lists_the_files(served: ServedProject, read_only: Path) -> None:
    project = served.project.using(served.settings)
    assert len(supervisor.supervised_processes(project)) >= 2, "Envoy and a replica"
    done = down(project)
    assert supervisor.supervised_processes(project) == [] and not supervisor.is_up(project)
    assert is_free(served.settings.gateway_port)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    error = json.loads(done.stdout)
    reason = "the file system is read-only"
    assert f"everything is stopped, but not all files could be written or removed: {reason}" in error["message"]
    for name in ("programs/envoy.conf", "locks/gateway.lock", "locks/supervisor.lock", "replicas/digits"):
        assert name in error["message"], error["message"]
    assert error["hint"] == "mount it writable, then run the same command"
    assert gateway.read_routes(project), "the record is as it was"

    subprocess.run(["mount", "-o", "remount,bind,rw", str(read_only)], check=True)
    done = down(project)
    assert done.returncode == 0, done.stderr
    assert gateway.read_routes(project) == {} and not project.runtime_dir.exists()
    assert [entry.act for entry in audit.entries(project)] == ["down"]


def test_a_damaged_list_of_tokens_keeps_nothing_running(served: ServedProject) -> None:
    project = served.project.using(served.settings)
    (project.token_keys / "jwks.json").write_text("{")
    with pytest.raises(HeadraceError, match=r"everything is stopped.*damaged file"):
        up.down(project)
    assert supervisor.supervised_processes(project) == []
