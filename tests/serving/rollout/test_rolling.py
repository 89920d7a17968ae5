from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import Busy, ServiceError
from headrace.project import Project
from headrace.serving.gateway import admin, gateway
from headrace.serving.replicas import project_processes, supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.serving.rollout.context import rollout_lock
from headrace.settings import Settings
from tests.exhaustive import exhaustive
from tests.paths import ROOT
from tests.serving.load import Load

V1, V2 = ReplicaSpec("digits", "1", "good"), ReplicaSpec("digits", "2", "good")


def quiet(line: str) -> None: ...


@pytest.fixture
def roll(project: Project, settings: Settings, runner: ProcessRunner) -> Callable[..., rolling.Rollout]:
    def to(spec: ReplicaSpec, replicas: int = 2) -> rolling.Rollout:
        return rolling.roll_out(spec, replicas, project.using(settings), runner, quiet)

    return to


def test_no_request_fails_during_swaps(roll: Any, settings: Settings) -> None:
    roll(V1)
    with Load(settings.gateway_port, "digits") as load:
        for version in ("2", "3", "4", "5"):
            roll(ReplicaSpec("digits", version, "good"))
            load.wait_for(version)
    assert load.failures == []
    assert {"2", "3", "4", "5"} <= set(load.answers)


def test_no_request_fails_while_scaling(roll: Any, project: Project, settings: Settings, runner: ProcessRunner) -> None:
    roll(V1)
    with Load(settings.gateway_port, "digits") as load:
        for replicas in (4, 1, 3):
            rolling.scale("digits", replicas, project.using(settings), runner, quiet)
            assert len(admin.healthy_endpoints(project, "digits")) == replicas
            load.wait_for("1")
    assert load.failures == []


def test_a_killed_replica_restarts_and_its_requests_are_retried(
    roll: Any, project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    roll(V1, 3)
    victim = runner.list("digits")[0]
    assert victim.pid is not None
    with Load(settings.gateway_port, "digits") as load:
        load.wait_for("1", 50)
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: was_restarted(runner, victim) and len(admin.healthy_endpoints(project, "digits")) == 3)
        load.wait_for("1", 50)
    assert load.failures == []


def test_a_version_that_serves_already_is_left_alone(roll: Any, runner: ProcessRunner) -> None:
    roll(V1)
    before = {replica.pid for replica in runner.list()}
    again = roll(V1)
    assert not again.changed
    assert {replica.pid for replica in runner.list()} == before
    assert {replica.id for replica in again.replicas} == {replica.id for replica in runner.list()}


def test_scaling_up_keeps_the_replicas_that_serve(roll: Any, runner: ProcessRunner) -> None:
    before = {replica.id for replica in roll(V1, 1).replicas}
    assert before < {replica.id for replica in roll(V1, 3).replicas}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "the graph and the contract disagree"),
        ("never", "/readyz returned 503"),
        ("wrong", "serves version 0, not 2"),
    ],
)
def test_when_the_new_replicas_fail_the_previous_version_keeps_serving(
    behaviour: str, reason: str, roll: Any, project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    roll(V1)
    before = {replica.id for replica in runner.list()}
    impatient = settings.model_copy(update={"ready_seconds": 6.0}) if behaviour == "never" else settings
    with Load(settings.gateway_port, "digits", slow=0) as load, pytest.raises(ServiceError, match=reason) as caught:
        rolling.roll_out(ReplicaSpec("digits", "2", behaviour), 2, project.using(impatient), runner, quiet)
    assert caught.value.hint
    assert behaviour == "wrong" or "; digits@1 keeps serving" in caught.value.message
    assert load.failures == []
    assert set(load.answers) == {"1"}
    assert {replica.id for replica in runner.list()} == before
    assert rolling.is_serving(V1, 2, project.using(settings))


def test_a_first_release_that_fails_mentions_no_version_that_serves(roll: Any, project: Project, runner: ProcessRunner) -> None:
    with pytest.raises(ServiceError, match="the graph and the contract disagree") as caught:
        roll(ReplicaSpec("digits", "1", "crash"))
    assert ", and nothing serves this model." in caught.value.message
    assert "keeps serving" not in caught.value.message and "previous" not in caught.value.message
    assert gateway.endpoints_by_model(project) == {} and runner.list() == []


def test_other_models_are_unaffected_when_one_is_added_replaced_and_removed(
    roll: Any, project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    roll(ReplicaSpec("flights", "7", "good"), 1)
    with Load(settings.gateway_port, "flights") as load:
        roll(V1)
        roll(V2)
        assert {r.version for r in rolling.remove("digits", project.using(settings), runner, quiet)} == {"2"}
        load.wait_for("7")
    assert load.failures == []
    assert list(gateway.endpoints_by_model(project)) == ["flights"]
    assert [replica.model for replica in runner.list()] == ["flights"]


@pytest.mark.parametrize("delay", [exhaustive(0.05), exhaustive(0.2), exhaustive(0.35), 0.5, exhaustive(0.7)])
def test_the_next_roll_out_repairs_one_that_was_killed_at_any_moment(
    delay: float, roll: Any, project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    roll(V1)
    with Load(settings.gateway_port, "digits") as load:
        killed = in_another_process(project, settings)
        time.sleep(delay)
        killed.kill()
        killed.wait()
        roll(ReplicaSpec("digits", "3", "good"))
        load.wait_for("3")
    assert load.failures == []
    assert {(replica.version, replica.state) for replica in runner.list()} <= {("3", "running"), ("3", "starting")}
    assert len(runner.list()) == 2
    assert {e.id for e in gateway.endpoints_by_model(project)["digits"]} == {replica.id for replica in runner.list()}
    assert set(supervisor.states(project)) == {"envoy", *(replica.id for replica in runner.list())}


def test_two_roll_outs_of_one_model_exclude_each_other(roll: Any, project: Project) -> None:
    with rollout_lock(project, "digits"), pytest.raises(Busy, match="digits"):
        roll(V1)


def test_scaling_a_model_that_is_not_served_names_those_that_are(
    roll: Any, project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    roll(V1)
    with pytest.raises(ServiceError, match="no replica serves 'zebra'") as caught:
        rolling.scale("zebra", 2, project.using(settings), runner, quiet)
    assert caught.value.hint == "headrace run zebra"
    with pytest.raises(ServiceError, match="did you mean 'digits'"):
        rolling.scale("digts", 2, project.using(settings), runner, quiet)


def test_a_roll_out_after_supervisord_was_killed_starts_over(
    roll: Any, project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    roll(V1)
    (daemon,) = project_processes.find_supervisords(project)
    daemon.kill()
    roll(V2)
    assert rolling.is_serving(V2, 2, project.using(settings))
    assert {replica.version for replica in runner.list()} == {"2"}
    assert len(supervisor.supervised_processes(project)) == 3  # Envoy and two replicas: no process from before


def in_another_process(project: Project, settings: Settings) -> subprocess.Popen[bytes]:
    """A roll-out of version 2, to be killed."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.serving.replica_commands import echo_command
from headrace.project import Project
from headrace.serving.rollout import rolling
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.settings import Settings
project = Project(Path({str(project.root)!r}), Settings(**{json.loads(settings.model_dump_json())!r}))
rolling.roll_out(ReplicaSpec("digits", "2", "good"), 2, project, ProcessRunner(project, echo_command), print)
"""
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert started.stdout is not None
    started.stdout.readline()  # its first line: the new replicas were started
    return started


def was_restarted(runner: ProcessRunner, victim: Replica) -> bool:
    return any(r.id == victim.id and r.pid not in (None, victim.pid) for r in runner.list("digits"))


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
