"""The systemd unit, as far as it can be tried without a user manager: systemd's own check, and the command that it runs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.services import systemd
from tests.projects import make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HEADRACE_QUOTA_STORE", "redis://:50%$secret@127.0.0.1:1")
    return make_project(tmp_path / 'a 100% "clone"')


def test_a_unit_is_installed_shown_and_removed(project: Project) -> None:
    before = systemd.find(project)
    assert not before.installed and before.next_steps[0] == "headrace service install"
    found = systemd.install(project)
    path = Path(found.path)
    assert found.installed and found.current and path.stat().st_mode & 0o077 == 0
    assert path.name.startswith("headrace-a-100-clone-")
    if not found.lingers:
        assert any(step.startswith("loginctl enable-linger") for step in found.next_steps)
    path.write_text(path.read_text().replace(sys.executable, "/moved/bin/python"))
    assert systemd.find(project).next_steps[0] == "headrace service install", "it runs another installation"
    systemd.uninstall(project)
    assert not path.exists() and not systemd.find(project).installed
    systemd.uninstall(project)


def test_the_command_of_the_unit_runs_headrace_in_this_project_without_anything_of_the_shell(project: Project) -> None:
    text = Path(systemd.install(project).path).read_text()
    lines = [line.partition("=")[::2] for line in text.splitlines() if "=" in line]
    read = [json.loads(value).replace("%%", "%") for name, value in lines if name == "Environment"]
    environment = dict(value.split("=", 1) for value in read)
    assert environment["HEADRACE_ROOT"] == str(project.root)
    assert environment["HEADRACE_QUOTA_STORE"] == "redis://:50%$secret@127.0.0.1:1"
    command = [part.replace("%%", "%").replace("$$", "$") for part in shlex.split(dict(lines)["ExecStart"])]
    assert command[-1] == "up"
    done = subprocess.run([*command[:-1], "status", "--json"], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {service["state"] for service in json.loads(done.stdout)["services"]} == {"stopped"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
def test_systemd_accepts_the_unit(project: Project, tmp_path: Path) -> None:
    path = systemd.install(project).path
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", path], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "headrace" in line]) == (0, [])
