"""What all servers have in common, with a real supervisord: one that does not answer is restarted once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.services import prefect, service
from headrace.services.service import Server, wait_until_ready
from headrace.serving.replicas import supervisor

SLEEPER = supervisor.Program("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])


@pytest.fixture(autouse=True)
def _stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(service, "READY_SECONDS", 3.0)
    monkeypatch.setattr(service, "RESTART_SECONDS", 2.0)
    supervisor.add(project, SLEEPER)
    yield
    supervisor.shutdown(project)


def started_at(project: Project) -> float:
    return supervisor.states(project)["sleeper"].started_at


@pytest.mark.parametrize("stopped_seconds", [0.0, 1.5])
def test_two_commands_that_wait_for_a_server_restart_it_once(
    project: Project, monkeypatch: pytest.MonkeyPatch, stopped_seconds: float
) -> None:
    """Also if the second command finds the server stopped by the first one."""

    def restart(project: Project, name: str, stop_seconds: float) -> None:
        supervisor.stop(project, name, stop_seconds)
        time.sleep(stopped_seconds)
        supervisor.add(project, SLEEPER)

    monkeypatch.setattr(supervisor, "restart", restart)
    first, lines = started_at(project), list[str]()
    server = Server(SLEEPER, "nowhere", lambda: time.time() - 2 > started_at(project) > first)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wait_until_ready, project, server, lines.append)]
        time.sleep(0.5)
        waiting.append(pool.submit(wait_until_ready, project, server, lines.append))
        assert [found.result().state for found in waiting] == ["ready", "ready"]
    assert lines == ["sleeper: no answer within 3 s; restarting it"]


def test_a_server_that_somebody_stops_is_started_again_or_reported(project: Project) -> None:
    supervisor.stop(project, "sleeper", 1.0)
    lines: list[str] = []
    with pytest.raises(ServiceError, match="sleeper does not start: no answer within 3 s"):
        wait_until_ready(project, Server(SLEEPER, "nowhere", lambda: False), lines.append)
    assert lines == ["sleeper: it was stopped; restarting it"]


def test_the_worker_of_prefect_ends_before_its_server_is_replaced(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would log a traceback for each connection that is cut. Two programs that sleep stand in for both."""
    ended = project.root / "ended"
    worker = "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(open(sys.argv[2], 'w').write("
    worker += "str(os.path.exists('/proc/' + sys.argv[1]))))); time.sleep(600)"
    supervisor.add(project, supervisor.Program(prefect.SERVER, SLEEPER.argv))
    replaced = supervisor.states(project)[prefect.SERVER].pid
    supervisor.add(project, supervisor.Program(prefect.WORKER, [sys.executable, "-c", worker, str(replaced), str(ended)]))
    time.sleep(1.0)  # it handles the signal
    same = supervisor.Program(prefect.SERVER, SLEEPER.argv)
    monkeypatch.setattr(prefect, "server", lambda _: Server(same, "nowhere", lambda: True))
    prefect.launch_server(project, lambda line: None)
    assert supervisor.states(project)[prefect.WORKER].state == "running", "the same server goes on, and so does its worker"
    other = supervisor.Program(prefect.SERVER, SLEEPER.argv, code="newer")
    monkeypatch.setattr(prefect, "server", lambda _: Server(other, "nowhere", lambda: True))
    prefect.launch_server(project, lambda line: None)
    assert ended.read_text() == "True", "the server still ran"
    assert supervisor.states(project)[prefect.WORKER].state != "running"
    assert supervisor.states(project)[prefect.SERVER].pid != replaced
