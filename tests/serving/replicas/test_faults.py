"""Replicas or Envoy are killed, or clients slow, under load: real processes behind a real Envoy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from headrace.serving.gateway import admin, envoy_process
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from tests.serving.served_project import CHAMPION, ServedProject, open_served_project


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    with open_served_project(tmp_path_factory.mktemp("faults") / "clone") as found:
        found.roll_out(CHAMPION)
        yield found


def wait_until(true: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pid_of(served: ServedProject, name: str) -> int | None:
    state = supervisor.states(served.project).get(name)
    return state.pid if state and state.state in ("starting", "running") else None


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_replica_that_ends_under_load_loses_no_request(sent: signal.Signals, served: ServedProject) -> None:
    """After SIGTERM it completes its requests; those cut off by SIGKILL are retried on another replica."""
    victim = served.runner.list("digits")[0]
    assert victim.pid is not None
    with served.load() as load:
        load.wait_for("1", 50)
        os.kill(victim.pid, sent)
        wait_until(lambda: pid_of(served, victim.id) not in (None, victim.pid))
        wait_until(lambda: len(admin.healthy_endpoints(served.project, "digits")) == 2)
        load.wait_for("1", 50)
    assert load.failures == []


def test_a_killed_envoy_is_restarted_and_only_requests_of_that_moment_fail(served: ServedProject) -> None:
    before = pid_of(served, "envoy")
    assert before is not None
    with served.load() as load:
        load.wait_for("1", 50)
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda: (
                pid_of(served, "envoy") not in (None, before) and envoy_process.is_ready(served.project.using(served.settings))
            )
        )
        wait_until(lambda: len(admin.healthy_endpoints(served.project, "digits")) == 2)
        lost = len(load.failures)
        load.wait_for("1", 100)
    assert len(load.failures) == lost, "nothing fails once it is back"
    assert not [failure for failure in load.failures if failure.startswith(("500", "502", "504"))], load.failures[:3]


def test_a_slow_client_delays_a_rollout_by_the_drain_time_only(served: ServedProject) -> None:
    hasty = ServedProject(served.project, served.settings.model_copy(update={"drain_seconds": 2.0}))
    ended: list[str] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", served.settings.gateway_port, timeout=60)
        connection.request("POST", "/v1/models/digits/predict", json.dumps({"instances": [{"wait": 25}]}))
        with contextlib.suppress(http.client.RemoteDisconnected):  # the gateway ends with the test
            ended.append(str(connection.getresponse().status))

    threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.3)  # the request is running
    with served.load() as load:
        load.wait_for("1")
        hasty.roll_out(ReplicaSpec("digits", "2", "good"))
        load.wait_for("2")
    assert ended == [], "the rollout did not wait for it"
    assert load.failures == []
    hasty.assert_serves("2")


@pytest.mark.exhaustive
def test_twenty_releases_in_a_row_lose_no_request(served: ServedProject) -> None:
    with served.load() as load:
        for version in map(str, range(101, 121)):
            served.roll_out(ReplicaSpec("digits", version, "good"), replicas=1)
            load.wait_for(version, 5)
    assert load.failures == []
    assert {str(version) for version in range(101, 121)} <= set(load.answers)
    assert len(served.runner.list()) == 1
    assert rolling.is_serving(ReplicaSpec("digits", "120", "good"), 1, served.project.using(served.settings))
