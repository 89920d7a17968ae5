"""A process that watches its parent ends soon after it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from headrace import processes
from tests.paths import ROOT

WATCHED = """
import time
from headrace.processes import die_with_parent
die_with_parent()
print("watching", flush=True)
time.sleep(60)
"""


def _killed_and_reaped(parent: subprocess.Popen[bytes]) -> None:
    parent.kill()
    parent.wait()


@pytest.mark.parametrize("end", [_killed_and_reaped, subprocess.Popen.kill], ids=["gone", "a zombie"])
def test_a_process_ends_with_its_parent(end: Callable[[subprocess.Popen[bytes]], None]) -> None:
    parent = subprocess.Popen(["sleep", "60"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), processes.PARENT_PID: str(parent.pid)}
    child = subprocess.Popen([sys.executable, "-c", WATCHED], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "watching\n"
        assert child.poll() is None
        end(parent)
        assert child.wait(30) == 1
    finally:
        for process in (child, parent):
            process.kill()
            process.wait()


def test_a_process_whose_parent_is_already_dead_ends_at_once() -> None:
    parent = subprocess.Popen(["true"])
    parent.wait()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), processes.PARENT_PID: str(parent.pid)}
    assert subprocess.run([sys.executable, "-c", WATCHED], env=environment, capture_output=True, timeout=30).returncode == 1
