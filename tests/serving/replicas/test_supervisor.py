from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.supervisor import Program

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def wait_for_state(project: Project, name: str, *wanted: str, seconds: float = 30.0) -> supervisor.ProgramState:
    deadline = time.monotonic() + seconds
    while (state := supervisor.states(project).get(name)) is None or state.state not in wanted:
        assert time.monotonic() < deadline, f"{name} is {state}"
        time.sleep(0.05)
    return state


def pid_of(project: Project, name: str) -> int:
    pid = wait_for_state(project, name, "starting", "running").pid
    assert pid is not None
    return pid


def test_a_program_gets_its_arguments_and_variables_unchanged(project: Project) -> None:
    argv = [
        sys.executable,
        "-c",
        "import sys, os, time; print(sys.argv[1:], os.environ['ODD'], flush=True); time.sleep(60)",
        "50 %",
        'say "hi"',
        "it's",
    ]
    supervisor.add(project, Program("odd", argv, {"ODD": "a=1,b='%(name)s';c"}))
    deadline = time.monotonic() + 30
    while not (output := supervisor.tail(supervisor.log_path(project, "odd"), 5)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert output == """['50 %', 'say "hi"', "it's"] a=1,b='%(name)s';c"""


def test_a_killed_program_is_restarted(project: Project) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    wait_for_state(project, "sleeper", "running")
    first = pid_of(project, "sleeper")
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while pid_of(project, "sleeper") == first:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_adding_a_running_program_changes_nothing_and_another_command_replaces_it(project: Project) -> None:
    assert supervisor.add(project, Program("sleeper", SLEEP))
    first = pid_of(project, "sleeper")
    assert not supervisor.add(project, Program("sleeper", SLEEP))
    assert pid_of(project, "sleeper") == first
    assert supervisor.add(project, Program("sleeper", SLEEP, {"OTHER": "1"}))
    assert pid_of(project, "sleeper") != first


def test_a_program_that_ignores_sigterm_is_killed_with_its_children(project: Project) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, 1); time.sleep(600)']); "
        "print('up', flush=True); time.sleep(600)"
    )
    supervisor.add(project, Program("stubborn", [sys.executable, "-c", code]))
    deadline = time.monotonic() + 30
    while len(supervisor.supervised_processes(project)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # both ignore SIGTERM by now
    supervisor.remove(project, "stubborn", stop_seconds=1.0)
    assert supervisor.supervised_processes(project) == []
    assert "stubborn" not in supervisor.states(project)


def test_removing_an_unknown_program_does_nothing(project: Project) -> None:
    supervisor.remove(project, "unknown", 1.0)
    supervisor.ensure_running(project)
    supervisor.remove(project, "unknown", 1.0)


def test_concurrent_starts_make_one_supervisord(project: Project) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: supervisor.add(project, Program(f"sleeper-{i}", SLEEP)), range(6)))
    assert len(supervisor._find_supervisords(project)) == 1
    assert len(supervisor.states(project)) == 6


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stuck_supervisord_is_replaced_and_its_programs_restarted(
    sent: signal.Signals, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    orphan = psutil.Process(pid_of(project, "sleeper"))
    (daemon,) = supervisor._find_supervisords(project)
    daemon.send_signal(sent)
    monkeypatch.setattr(supervisor, "ANSWER_SECONDS", 1.0)
    supervisor.ensure_running(project)
    assert not supervisor.alive(orphan)
    wait_for_state(project, "sleeper", "running")
    assert pid_of(project, "sleeper") != orphan.pid
    assert len(supervisor.supervised_processes(project)) == 1


def test_a_supervisord_whose_socket_was_deleted_is_replaced(project: Project) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    before = pid_of(project, "sleeper")
    supervisor.socket_path(project).unlink()
    assert not supervisor.is_up(project)
    supervisor.ensure_running(project)
    wait_for_state(project, "sleeper", "running")
    assert pid_of(project, "sleeper") != before
    assert len(supervisor.supervised_processes(project)) == 1


def test_shutdown_leaves_no_process_no_socket_and_no_program(project: Project) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    pid_of(project, "sleeper")
    supervisor.shutdown(project)
    assert supervisor.supervised_processes(project) == []
    assert supervisor._find_supervisords(project) == []
    assert not project.runtime_dir.exists()
    supervisor.ensure_running(project)
    assert supervisor.states(project) == {}


def test_without_a_supervisord_there_are_no_states_and_shutdown_does_nothing(project: Project) -> None:
    assert not supervisor.is_up(project)
    assert supervisor.states(project) == {}
    supervisor.shutdown(project)


def test_a_command_that_supervisord_cannot_parse_is_refused_before_its_file_is_written(project: Project) -> None:
    with pytest.raises(ServiceError, match="space followed by"):
        supervisor.add(project, Program("bad", [sys.executable, "a ;b"]))
    with contextlib.suppress(FileNotFoundError):
        assert not list((project.state / "supervisor" / "programs").iterdir())


def test_the_socket_and_the_files_are_accessible_to_their_owner_only(project: Project) -> None:
    supervisor.ensure_running(project)
    assert project.runtime_dir.stat().st_mode & 0o077 == 0
    assert supervisor.socket_path(project).stat().st_mode & 0o077 == 0
    assert len(str(supervisor.socket_path(project))) < 100
