from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.runtime import unix_socket
from headrace.serving.replicas import programs, project_processes, supervisor, supervisor_rpc
from headrace.serving.replicas.supervisor import Program
from headrace.settings import Settings

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
    output = ""
    while not output.endswith(";c") and time.monotonic() < deadline:
        time.sleep(0.05)
        output = supervisor.tail(supervisor.log_path(project, "odd"), 5)
    assert output == """['50 %', 'say "hi"', "it's"] a=1,b='%(name)s';c"""


def test_the_limit_of_open_files_has_room_for_the_connections_of_the_gateway(project: Project) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for connections, files in ((4096, 8192), (9000, 18_000)):
        programs.write_configuration(project.using(Settings(max_connections=connections)))
        expected = files if hard == resource.RLIM_INFINITY else min(files, hard)
        assert f"\nminfds={expected}\n" in programs.configuration_path(project).read_text()


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
    assert len(project_processes.find_supervisords(project)) == 1
    assert len(supervisor.states(project)) == 6


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_stuck_supervisord_is_replaced_and_its_programs_restarted(
    sent: signal.Signals, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    orphan = psutil.Process(pid_of(project, "sleeper"))
    (daemon,) = project_processes.find_supervisords(project)
    daemon.send_signal(sent)
    monkeypatch.setattr(supervisor_rpc, "ANSWER_SECONDS", 1.0)
    supervisor.ensure_running(project)
    assert not project_processes.alive(orphan)
    wait_for_state(project, "sleeper", "running")
    assert pid_of(project, "sleeper") != orphan.pid
    assert len(supervisor.supervised_processes(project)) == 1


def test_a_supervisord_whose_socket_was_deleted_opens_it_again_and_its_programs_keep_running(project: Project) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    wait_for_state(project, "sleeper", "running")
    before = pid_of(project, "sleeper")
    supervisor.socket_path(project).unlink()
    assert not supervisor.is_up(project)
    supervisor.ensure_running(project)
    assert supervisor.is_up(project)
    assert pid_of(project, "sleeper") == before


def test_after_rm_rf_of_the_runtime_folder_programs_keep_running_and_can_be_managed(project: Project) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    wait_for_state(project, "sleeper", "running")
    before = pid_of(project, "sleeper")
    for _ in range(2):
        shutil.rmtree(project.runtime_dir)
        deadline = time.monotonic() + 30
        while not supervisor.is_up(project):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert pid_of(project, "sleeper") == before
    assert project.runtime_dir.stat().st_mode & 0o077 == 0
    shutil.rmtree(project.logs)
    time.sleep(3.0)
    supervisor.restart(project, "sleeper", 1.0)
    wait_for_state(project, "sleeper", "running")
    supervisor.shutdown(project)
    assert supervisor.supervised_processes(project) == []


def test_every_shell_finds_the_same_supervisord(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login sets XDG_RUNTIME_DIR, and removes that folder at its end; cron and sudo do not set it."""
    login = tmp_path / "login"
    login.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(login))
    supervisor.add(project, Program("sleeper", SLEEP))
    before = pid_of(project, "sleeper")
    assert list(login.iterdir()) == []
    login.rmdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "another"))
    assert pid_of(project, "sleeper") == before


def _link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


def _owned_by_another(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)


def _open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_link, "it is a link"),
        pytest.param(
            _owned_by_another,
            "it belongs to user 12345",
            marks=pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away"),
        ),
        (_open_to_all, "its mode is 777"),
        (Path.touch, "it is not a folder"),
    ],
)
def test_a_runtime_folder_that_others_can_enter_is_refused(
    make: Callable[[Path], object], reason: str, project: Project
) -> None:
    project.state.mkdir()
    make(project.runtime_dir)
    with pytest.raises(ServiceError, match=f"the folder is not used: {reason}") as caught:
        supervisor.add(project, Program("sleeper", SLEEP))
    hint = f"move it away: mv '{project.runtime_dir}' '{project.runtime_dir}.old'"
    assert (caught.value.where, caught.value.hint) == (str(project.runtime_dir), hint)
    assert project_processes.find_supervisords(project) == []
    project.runtime_dir.rename(project.state / "aside")  # the fixture's shutdown removes what it finds there


def test_a_removed_folder_that_somebody_else_makes_again_is_not_used_and_programs_keep_running(project: Project) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    wait_for_state(project, "sleeper", "running")
    before = pid_of(project, "sleeper")
    elsewhere = project.state / "elsewhere"
    shutil.rmtree(project.runtime_dir)
    elsewhere.mkdir()
    with contextlib.suppress(FileExistsError):
        project.runtime_dir.symlink_to(elsewhere)
    if project.runtime_dir.is_symlink():
        with pytest.raises(ServiceError, match="it is a link"):
            supervisor.ensure_running(project)
        time.sleep(2.5)
        assert "it is a link" in supervisor.log_path(project, "supervisord").read_text()
        assert list(elsewhere.iterdir()) == []
        project.runtime_dir.unlink()
    supervisor.ensure_running(project)
    assert pid_of(project, "sleeper") == before


def test_a_program_that_failed_is_tried_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """supervisord alone gives up on it for good. It waits for two seconds here instead of a minute."""
    faster = "from headrace.serving.replicas import supervisord; supervisord.RETRY_SECONDS = 2.0; supervisord.main()"
    monkeypatch.setattr(supervisor, "SUPERVISORD", ["-c", faster])
    cause = project.root / "cause"
    cause.touch()
    command = ["sh", "-c", 'test ! -e "$0" && exec sleep 600', str(cause)]
    supervisor.add(project, Program("flaky", command, start_retries=0))
    wait_for_state(project, "flaky", "failed")
    cause.unlink()
    wait_for_state(project, "flaky", "running", seconds=90.0)


@pytest.mark.parametrize("descriptors", ["/proc/self/fd", "/missing"])
def test_a_project_may_have_a_path_longer_than_a_socket_address(
    descriptors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "DESCRIPTORS", Path(descriptors))
    root = tmp_path / ("long" * 30)
    root.mkdir()
    found = Project(root)
    try:
        supervisor.add(found, Program("sleeper", SLEEP))
        wait_for_state(found, "sleeper", "running")
    finally:
        supervisor.shutdown(found)
    assert supervisor.supervised_processes(found) == []


def test_services_of_a_project_that_was_moved_while_they_ran_are_stopped_from_its_new_folder(
    project: Project, tmp_path: Path
) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    wait_for_state(project, "sleeper", "running")
    assert not supervisor.was_moved(project)
    sleeper = psutil.Process(pid_of(project, "sleeper"))
    moved = Project(project.root.rename(tmp_path / "moved"))
    try:
        assert supervisor.was_moved(moved)
        supervisor.shutdown(moved)
        assert not project_processes.alive(sleeper) and not supervisor.was_moved(moved)
        supervisor.ensure_running(moved)
        assert supervisor.is_up(moved) and not supervisor.was_moved(moved)
    finally:
        supervisor.shutdown(moved)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away")
def test_the_state_of_another_user_is_refused_in_words(project: Project) -> None:
    project.state.mkdir()
    os.chown(project.state, 12345, -1)
    with pytest.raises(ServiceError, match="belong to user 12345, and this is user root") as caught:
        supervisor.add(project, Program("sleeper", SLEEP))
    assert str(caught.value.hint).startswith("run the command as 12345, or, after headrace down")
    os.chown(project.state, 0, -1)


def test_programs_reach_this_machine_without_a_proxy(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.delenv("no_proxy", raising=False)
    command = (
        "import urllib.request as r, time; print(r.proxy_bypass('127.0.0.1'), r.proxy_bypass('intranet'), 'end', flush=True)"
    )
    supervisor.add(project, Program("asks", [sys.executable, "-c", f"{command}; time.sleep(60)"]))
    deadline, output = time.monotonic() + 30, ""
    while not output.endswith("end"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        output = supervisor.tail(supervisor.log_path(project, "asks"), 5)
    assert output in ("1 1 end", "True True end")


def test_shutdown_leaves_no_process_no_socket_and_no_program(project: Project) -> None:
    supervisor.add(project, Program("sleeper", SLEEP))
    pid_of(project, "sleeper")
    supervisor.shutdown(project)
    assert supervisor.supervised_processes(project) == []
    assert project_processes.find_supervisords(project) == []
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
