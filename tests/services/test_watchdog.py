"""The watchdog with real faults: a stuck replica, a killed supervisord, its own death."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.project import Project
from headrace.services import probes, watchdog
from headrace.services.service import settings_environment
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.gateway.model_route import Traffic
from headrace.serving.replicas import project_processes, supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling, steps
from headrace.serving.rollout.context import RolloutContext, rollout_lock
from headrace.settings import Settings
from tests.ports import free_port
from tests.serving.load import Load

STUCK_SECONDS, TRIAL_SECONDS = 3.0, 2.0


@pytest.fixture
def watched(project: Project, settings: Settings, runner: ProcessRunner) -> None:
    """Three replicas serve, and the watchdog runs."""
    rolling.roll_out(ReplicaSpec("digits", "1", "good"), 3, project.using(settings), runner, lambda line: None)
    environment = settings_environment(project.using(settings))
    supervisor.add(project, watchdog.program(environment, settings.ready_seconds, STUCK_SECONDS, TRIAL_SECONDS))


def wait_until(condition: Callable[[], Any], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pid_of(project: Project, name: str) -> int | None:
    state = supervisor.states(project).get(name)
    return state.pid if state and state.state in ("starting", "running") else None


@pytest.mark.usefixtures("watched")
def test_a_stuck_replica_is_restarted_and_no_request_fails(project: Project, settings: Settings, runner: ProcessRunner) -> None:
    wait_until(lambda: pid_of(project, "watchdog"))
    watchdog_process = psutil.Process(pid_of(project, "watchdog"))
    victim = runner.list("digits")[0]
    others = {replica.id: replica.pid for replica in runner.list("digits")[1:]}
    assert victim.pid is not None
    time.sleep(2.5)  # the watchdog has probed it
    with Load(settings.gateway_port, "digits", slow=0) as load:
        load.wait_for("1", 50)
        os.kill(victim.pid, signal.SIGSTOP)
        wait_until(lambda: pid_of(project, victim.id) not in (None, victim.pid))
        wait_until(lambda: len(admin.healthy_endpoints(project, "digits")) == 3)
        load.wait_for("1", 50)
    assert load.failures == []
    assert {id: pid_of(project, id) for id in others} == others, "replicas that answer are not restarted"
    assert watchdog_process.memory_info().rss < 40e6
    envoy = pid_of(project, "envoy")
    assert envoy is not None
    os.kill(envoy, signal.SIGSTOP)
    wait_until(lambda: pid_of(project, "envoy") not in (None, envoy) and envoy_process.is_ready(project.using(settings)))
    assert f"{victim.id} is stuck" in supervisor.tail(supervisor.log_path(project, "watchdog"), 20)


@pytest.mark.usefixtures("watched")
def test_removed_sockets_come_back_with_their_replicas(project: Project, settings: Settings, runner: ProcessRunner) -> None:
    """A replica without its socket still runs, and serves on connections that it has; no new one reaches it."""
    wait_until(lambda: pid_of(project, "watchdog"))
    victim, *others = runner.list("digits")
    socket = victim.address_in(project)
    assert isinstance(socket, Path)
    with Load(settings.gateway_port, "digits", slow=0) as load:
        load.wait_for("1", 50)
        socket.unlink()
        wait_until(lambda: pid_of(project, victim.id) not in (None, victim.pid))
        wait_until(lambda: socket.exists() and len(admin.healthy_endpoints(project, "digits")) == 3)
        load.wait_for("1", 50)
    assert load.failures == []
    assert {replica.id: pid_of(project, replica.id) for replica in others} == {one.id: one.pid for one in others}
    shutil.rmtree(socket.parent)
    sockets = [replica.address_in(project) for replica in (victim, *others)]
    wait_until(lambda: all(isinstance(path, Path) and path.exists() for path in sockets))
    wait_until(lambda: len(admin.healthy_endpoints(project, "digits")) == 3)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


@pytest.mark.usefixtures("watched")
def test_a_killed_watchdog_and_a_killed_supervisord_come_back_with_all_replicas(project: Project, settings: Settings) -> None:
    wait_until(lambda: pid_of(project, "watchdog"))
    first = pid_of(project, "watchdog")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pid_of(project, "watchdog") not in (None, first))
    time.sleep(1.0)  # the new process has read its parent's id
    (daemon,) = project_processes.find_supervisords(project)
    before = {process.pid for process in supervisor.supervised_processes(project)}
    with Load(settings.gateway_port, "digits", slow=0) as load:
        load.wait_for("1", 20)
        daemon.kill()
        wait_until(lambda: supervisor.is_up(project) and pid_of(project, "watchdog") is not None)
        wait_until(lambda: len(admin.healthy_endpoints(project, "digits")) == 3)
        load.wait_for("1", 50)
    assert len(project_processes.find_supervisords(project)) == 1
    wait_until(lambda: "all services recovered in" in supervisor.tail(supervisor.log_path(project, "watchdog"), 20))
    after = {process.pid: " ".join(process.cmdline()) for process in supervisor.supervised_processes(project)}
    assert not before & after.keys(), "no earlier process is left"
    assert len(after) == 5 and sum("headrace.services.watchdog" in line for line in after.values()) == 1, after


def test_what_restarts_supervisord_is_not_ended_with_the_programs_of_supervisord(project: Project) -> None:
    """A living supervisord ends the process groups of its programs when it is replaced."""
    mark = project.root / "mark"
    code = (
        "import os, sys; from headrace.project import find_project; from headrace.services import watchdog; "
        f"watchdog._command = lambda *_: [sys.executable, '-c', 'import time; time.sleep(600)', {str(mark)!r}]; "
        "watchdog.Watchdog(find_project(), 10.0, 60.0, 30.0)._revive('did not answer')"
    )
    environment = {"HEADRACE_ROOT": str(project.root)}
    supervisor.add(project, supervisor.Program("watchdog", [sys.executable, "-c", code], environment, start_retries=0))

    def revivers() -> list[psutil.Process]:
        return [process for process in psutil.process_iter(["cmdline"]) if (process.info["cmdline"] or [])[-1:] == [str(mark)]]

    try:
        wait_until(revivers)
        reviver = revivers()[0]
        supervisor.shutdown(project, stop_seconds=5.0)
        assert project_processes.alive(reviver) and os.getsid(reviver.pid) == reviver.pid
    finally:
        for process in revivers():
            process.kill()


def test_a_stuck_server_that_stands_in_for_mlflow_is_restarted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    server = (
        "from http.server import *; H = type('H', (BaseHTTPRequestHandler,), "
        "{'do_GET': lambda self: (self.send_response(200), self.end_headers())}); "
        f"HTTPServer(('127.0.0.1', {port}), H).serve_forever()"
    )
    supervisor.add(project, supervisor.Program("mlflow", [sys.executable, "-c", server]))
    monkeypatch.setenv("HEADRACE_MLFLOW_PORT", str(port))
    monkeypatch.setenv("HEADRACE_ROOT", str(project.root))
    (target,) = probes.programs(project)
    wait_until(lambda: probes.failure(target) is None)
    found, first = watchdog.Watchdog(project, 0.2, 10.0, 30.0), pid_of(project, "mlflow")
    found.probe_all()
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    began = time.monotonic()
    while pid_of(project, "mlflow") in (None, first):
        found.probe_all()
        assert time.monotonic() < began + 60
        time.sleep(0.1)
    assert time.monotonic() - began > 0.2 * target.patience, "it has more time than a replica"
    wait_until(lambda: probes.failure(target) is None)


@pytest.mark.usefixtures("watched")
def test_services_that_were_shut_down_are_not_restarted(project: Project) -> None:
    wait_until(lambda: pid_of(project, "watchdog"))
    supervisor.shutdown(project, stop_seconds=5.0)
    assert not supervisor.restart_killed(project)
    assert supervisor.supervised_processes(project) == [] and not project.runtime_dir.exists()


@pytest.mark.usefixtures("watched")
def test_a_canary_of_a_killed_release_gets_no_more_requests(
    project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    """As a kill leaves it: half of the requests go to a version without a release."""
    site = RolloutContext("digits", project.using(settings), runner, lambda line: None)
    with rollout_lock(project, "digits"):
        steps.add_to_pool(site, steps.start_replicas(site, ReplicaSpec("digits", "2", "good", pool="canary"), 1))
        site.split_traffic(Traffic(canary=50))
        time.sleep(2 * TRIAL_SECONDS)
        assert site.endpoints("canary"), "a roll-out in progress is not rolled back"
    with Load(settings.gateway_port, "digits", slow=0) as load:
        load.wait_for("2", 20)
        wait_until(lambda: not site.endpoints("canary"))
        wait_until(lambda: {replica.version for replica in runner.list("digits")} == {"1"})
        load.wait_for("1", 20)
    assert load.failures == []
    assert gateway.traffic(project, "digits") == Traffic()


def test_a_damaged_record_of_what_serves_is_logged_once_and_does_not_end_the_watchdog(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.gateway.mkdir(parents=True)
    (project.gateway / "models.json").write_text("{")
    found = watchdog.Watchdog(project, 10.0, 60.0, 30.0)
    for _ in range(3):
        found._run(found.probe_all)
    assert capsys.readouterr().out.count("models.json: damaged file: not valid JSON") == 1
