"""Releases that are killed while a new version serves: real Envoy, real processes, under load."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import Busy
from headrace.files import read_json
from headrace.release import journal, recovery
from headrace.release.lock import release_lock
from headrace.services import probes, service, watchdog
from headrace.serving.gateway import gateway
from headrace.serving.replicas import runners, supervisor
from headrace.serving.replicas.process_runner import Argv
from headrace.serving.replicas.replica import ReplicaSpec
from tests.exhaustive import exhaustive
from tests.paths import ROOT
from tests.serving.replica_commands import misbehaving_command
from tests.serving.served_project import CHAMPION, ServedProject, open_served_project

V2 = ReplicaSpec("digits", "2", "good")
started: list[subprocess.Popen[bytes]] = []
"""The other processes of a test; they end with it, whether it passed or not."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    with open_served_project(tmp_path_factory.mktemp("abandoned") / "clone") as found:
        yield found


@pytest.fixture(autouse=True)
def champion(served: ServedProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(runners, "runner_for", lambda *_: served.runner)  # replicas of these tests instead of bentos
    served.roll_out(CHAMPION)
    log = journal.log(served.project)
    for path in (log.path, log.anchor, log.key):
        path.unlink(missing_ok=True)
    yield
    while started:
        kill(started.pop())


@contextlib.contextmanager
def watched(served: ServedProject) -> Iterator[None]:
    """The watchdog looks every second."""
    supervisor.add(
        served.project, watchdog.program(service.settings_environment(served.project.using(served.settings)), trial_seconds=1.0)
    )
    try:
        yield
    finally:
        supervisor.remove(served.project, "watchdog", 3.0)


def wait_until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def another_process(served: ServedProject, act: str) -> subprocess.Popen[bytes]:
    """Does `act` with the served project, in a process to be killed."""
    code = f"""
        import os, signal
        from pathlib import Path
        from headrace.release import recovery
        from headrace.project import Project
        from headrace.release.lock import release_lock
        from headrace.serving.replicas import runners
        from headrace.serving.replicas.replica import ReplicaSpec
        from headrace.settings import Settings
        from tests.serving.served_project import ServedProject
        settings = Settings(**{served.settings.model_dump(mode="json")!r})
        served = ServedProject(Project(Path({str(served.project.root)!r})), settings)
        runners.runner_for = lambda *_: served.runner
        V2 = ReplicaSpec("digits", "2", "good")
    """
    started.append(subprocess.Popen([sys.executable, "-c", textwrap.dedent(code) + textwrap.dedent(act)], cwd=ROOT))
    return started[-1]


def baking(served: ServedProject) -> subprocess.Popen[bytes]:
    """A release whose version 2 serves and is watched for a minute."""
    return another_process(
        served,
        """
        with release_lock("digits", served.project):
            served.roll_out(V2, bake="60s")
        """,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def recorded(served: ServedProject) -> list[tuple[str, str]]:
    return [(entry.event, entry.version) for entry in journal.entries(served.project, "digits")]


def in_pool(served: ServedProject) -> set[str]:
    """The versions that the gateway sends requests to."""
    return {endpoint.version for endpoint in gateway.endpoints_by_model(served.project)["digits"]}


def ids(served: ServedProject) -> set[str]:
    return {replica.id for replica in served.runner.list()}


def test_a_version_whose_release_is_killed_while_it_bakes_is_rolled_back_by_the_watchdog(served: ServedProject) -> None:
    before = ids(served)
    with watched(served), served.load() as load:
        release = baking(served)
        load.wait_for("2", 50, 30)
        wait_until(lambda: len(served.runner.list()) == 4 and in_pool(served) == {"2"})
        time.sleep(2.5)
        assert in_pool(served) == {"2"}, "one that is watched is left alone"
        kill(release)
        load.wait_for("1", 50)
        wait_until(lambda: not probes.interrupted_models(served.project))
        last = load.answers["2"]
        load.wait_for("1", 50)
        assert load.answers["2"] == last
    assert load.failures == []
    served.assert_serves("1")
    assert ids(served) == before, "the previous replicas serve again"
    (entry,) = journal.entries(served.project, "digits")
    assert (entry.event, entry.version, entry.facts["serving"]) == ("rollout-abandoned", "2", "1")
    assert "digits@1 serves" in entry.facts["reason"]
    with served.load() as load:
        served.roll_out(V2, bake="1s")
    assert load.failures == []
    assert [fact["step"] for fact in served.recorded] == ["version 2 live"], "the next release goes through it again"
    served.assert_serves("2")


@pytest.mark.parametrize("delay", [exhaustive(0.0), 0.1, exhaustive(0.25)])
def test_a_roll_out_killed_while_replicas_change_places_is_undone(delay: float, served: ServedProject) -> None:
    with served.load() as load:
        release = another_process(served, 'served.roll_out(V2, bake="60s", is_final=False)')
        wait_until(lambda: gateway.previous_replicas(served.project, "digits"))
        time.sleep(delay)
        kill(release)
        recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
        load.wait_for("1", 50)
    assert load.failures == []
    served.assert_serves("1")
    assert recorded(served) == [("rollout-abandoned", "2")]


@pytest.mark.parametrize("instant", ["add_to_pool", exhaustive("remove_from_pool"), exhaustive("stop")])
def test_a_roll_back_that_is_killed_is_completed_by_the_next(instant: str, served: ServedProject) -> None:
    with served.load() as load:
        release = baking(served)
        load.wait_for("2", 20)
        kill(release)
        half = another_process(
            served,
            f"""
            from headrace.serving.rollout import previous_replicas
            done = previous_replicas.{instant}
            previous_replicas.{instant} = lambda *given: (done(*given), os.kill(os.getpid(), signal.SIGKILL))
            recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), print)
            """,
        )
        assert half.wait(30) == -signal.SIGKILL
        assert probes.interrupted_models(served.project) == ["digits"]
        recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
        load.wait_for("1", 20)
    assert load.failures == []
    served.assert_serves("1")
    assert recorded(served) == [("rollout-abandoned", "2")], "it is recorded once"


def test_a_version_that_passed_and_was_not_released_goes_back_to_new_replicas(served: ServedProject) -> None:
    before = ids(served)
    with served.load() as load:
        served.roll_out(V2, bake="1s", is_final=False)
        assert not before & ids(served), "they were stopped once it had passed"
        recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
        load.wait_for("1", 20)
    assert load.failures == []
    served.assert_serves("1")
    assert recorded(served) == [("rollout-abandoned", "2")]


def test_predecessors_that_died_or_hang_beside_the_gateway_are_replaced(
    served: ServedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.serving.rollout.previous_replicas.READY_SECONDS", 1.0)
    monkeypatch.setattr("headrace.serving.rollout.readiness.CALL_SECONDS", 1.0)
    stuck, _ = served.runner.list()
    with served.load() as load:
        release = baking(served)
        load.wait_for("2", 20)
        assert stuck.pid is not None
        os.kill(stuck.pid, signal.SIGSTOP)
        kill(release)
        recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
        load.wait_for("1", 20)
    assert load.failures == []
    served.assert_serves("1")
    assert stuck.id not in ids(served)


def test_a_release_that_has_yet_to_write_its_line_is_left_alone(served: ServedProject) -> None:
    served.roll_out(V2, is_final=False)
    release = another_process(
        served,
        """
        with release_lock("digits", served.project):
            signal.pause()
        """,
    )
    holder = served.project.locks / "release-digits.json"
    wait_until(lambda: (read_json(holder) or {}).get("pid") == release.pid)
    with pytest.raises(Busy, match=f"digits is being released by process {release.pid}"):
        recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
    assert in_pool(served) == {"2"}
    kill(release)
    with release_lock("digits", served.project):  # the next release is not in its own way
        recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
    served.assert_serves("1")


def test_a_version_that_the_journal_calls_released_is_not_rolled_back(
    served: ServedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill leaves it between the journal's line and the predecessors' end."""
    moved: list[str] = []
    monkeypatch.setattr("headrace.tracking.registry.move_champion", lambda model, version, project: moved.append(version))
    served.roll_out(V2, is_final=False)
    journal.record(served.project, "released", "digits", "2", {"bento": "good", "image": None, "threads": 1})
    recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
    served.assert_serves("2")
    assert recorded(served) == [("released", "2")] and moved == ["2"]


def test_a_predecessor_that_cannot_serve_any_longer_is_not_in_the_way_of_the_next_release(
    served: ServedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_new(spec: ReplicaSpec, socket: Path) -> Argv:
        return (["false"], {}) if spec.version == "1" else misbehaving_command(spec, socket)

    with served.load() as load:
        served.roll_out(V2, is_final=False)
        with monkeypatch.context() as gone:
            gone.setattr(served.runner, "_command", only_new)
            recovery.roll_back_interrupted_release("digits", served.project.using(served.settings), served.reports.append)
            assert "digits cannot be rolled back: replica digits-v1-" in served.reports[-1]
            assert in_pool(served) == {"2"}, "the current version keeps serving"
            assert probes.interrupted_models(served.project) == ["digits"], "the watchdog tries again"
            served.roll_out(ReplicaSpec("digits", "3", "good"))
    assert load.failures == []
    served.assert_serves("3")
