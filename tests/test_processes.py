"""A process that watches its parent ends soon after it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


LOOPING = """
import time
from headrace import processes

class Closing:
    def __del__(self):  # Python drops an exception that is raised here
        print("closing", flush=True)
        time.sleep(30)

processes.interrupt_on_signals()
try:
    Closing()
    for _ in range(3000):
        processes.raise_if_interrupted()
        time.sleep(0.01)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_finalizer_still_ends_a_loop(number: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", LOOPING], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "closing\n"
    process.send_signal(number)
    assert process.communicate(timeout=25)[0] == "interrupted\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "intranet, 127.0.0.1", "no_proxy": "other"}, "intranet,127.0.0.1,other,localhost,::1"),
    ],
)
def test_this_machine_is_reached_without_a_proxy(given: dict[str, str], expected: str) -> None:
    processes.bypass_proxies_on_loopback(given)
    assert given == {"NO_PROXY": expected, "no_proxy": expected}


PRINTING = """
import subprocess, sys, time
from headrace import console
from headrace.processes import broken_pipes_ignored
with broken_pipes_ignored():
    print("first", flush=True)
    sys.stdin.readline()  # by now the reader is gone
    for _ in range(3):
        print("on standard output", flush=True)
        console.report("by rich")
        subprocess.run([sys.executable, "-c", "print('by a child', flush=True)"], check=True)
console.report("after the block")
print("after the block")
"""


def test_output_to_a_pipe_that_nobody_reads_is_no_error() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == 0


def test_output_to_a_pipe_is_complete_and_in_order() -> None:
    code = """
import os, sys
from headrace.processes import broken_pipes_ignored
with broken_pipes_ignored():
    for number in range(2000):
        print(number)
        if number % 1000 == 0:
            os.system("echo by a child")
print("end")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.isdigit()] == [str(number) for number in range(2000)]
    assert lines.count("by a child") == 2 and lines[-1] == "end"


def test_a_console_whose_reader_is_gone_stays_silent() -> None:
    code = "from headrace import console\nfor _ in range(3): console.out().print('x' * 70000)"
    command = '"$0" -c "$1" | head -c 1; exit ${PIPESTATUS[0]}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command, sys.executable, code], env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


STAGE = """
import sys, time
from headrace.processes import interrupt_on_signals
interrupt_on_signals()
try:
    print("started", flush=True)  # within the block: the signal may come right after
    time.sleep(60)
except KeyboardInterrupt:
    print("closed", flush=True)
"""


def test_children_of_an_interrupted_block_are_ended_first() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    earlier = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(KeyboardInterrupt), processes.children_ended(seconds=5):
            polite = subprocess.Popen([sys.executable, "-c", STAGE], env=environment, stdout=subprocess.PIPE, text=True)
            stuck = subprocess.Popen(
                ["bash", "-c", "trap '' TERM; echo; while true; do sleep 0.1; done"], stdout=subprocess.PIPE
            )
            assert polite.stdout is not None and stuck.stdout is not None
            polite.stdout.readline(), stuck.stdout.readline()
            raise KeyboardInterrupt
        assert (polite.wait(1), polite.stdout.read(), stuck.wait(1)) == (0, "closed\n", -9)
        assert earlier.poll() is None
    finally:
        earlier.kill()
        earlier.wait()


def test_stages_and_workers_map_errors_of_the_machine_as_commands_do(tmp_path: Path) -> None:
    found = processes.as_headrace_error(OSError(errno.EROFS, "Read-only file system", str(tmp_path)))
    assert found is not None and "mount it writable" in str(found.hint) and found.where == str(tmp_path)
    assert processes.as_headrace_error(PermissionError(errno.EACCES, "Permission denied")) is not None
    assert processes.as_headrace_error(OSError(errno.EBADF, "Bad file descriptor")) is None
