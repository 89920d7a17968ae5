"""Trials of new versions beside a champion, under load: real Envoy, real processes, real faults."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import RolloutAborted
from headrace.recipe.recipe import parse_recipe
from headrace.recipe.serve import Bounds, RolloutConfig
from headrace.release import deploy, history, journal
from headrace.release.deploy import PackagedVersion
from headrace.serving.gateway import gateway
from headrace.serving.gateway.model_route import Traffic
from headrace.serving.replicas import runners
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.tracking.registry import Version
from tests.paths import ROOT
from tests.projects import TINY_TABLE
from tests.serving.served_project import CHAMPION, ServedProject, open_served_project

LENIENT = {"error_rate": 0.9, "latency": 50, "distribution": 99, "agreement": 0.01}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    with open_served_project(tmp_path_factory.mktemp("trials") / "clone") as found:
        yield found


@pytest.fixture(autouse=True)
def champion(served: ServedProject) -> None:
    served.roll_out(CHAMPION)


def test_a_good_canary_passes_all_steps_and_then_serves_alone(served: ServedProject) -> None:
    with served.load() as load:
        load.wait_for("1", 50)
        served.roll_out(ReplicaSpec("digits", "2", "good"), strategy="canary", steps=[10, 50], bake="1.5s", bounds=LENIENT)
        assert load.failures == []
        load.wait_for("2", 50)
        last = load.answers["1"]
        load.wait_for("2", 50)
        assert load.answers["1"] == last, "the champion gets no more requests"
    assert load.failures == []
    served.assert_serves("2")
    assert [fact["step"] for fact in served.recorded] == ["canary 10 %", "canary 50 %"]
    small, large = served.recorded
    share = large["requests"] / (large["requests"] + large["champion_requests"])
    assert 0.4 < share < 0.6 and small["requests"] < large["requests"]
    assert large["judged"], served.reports
    assert large["psi"] < 0.2 and "p99_seconds" in large
    assert any(
        re.search(r"canary 50 %, passed: .* requests, errors 0.00% .*p99 \d+ ms .*PSI 0\.", line) for line in served.reports
    )


@pytest.mark.parametrize(
    ("fault", "bound", "reason"),
    [
        ("errors", "error_rate", r"requests failed, and 0.0% of the champion's; error_rate allows 1.0% more"),
        ("slow", "latency", r"99th percentile is \d+ ms, and the champion's \d+ ms; latency allows"),
        ("other", "distribution", r"population stability index \d.*; distribution allows 0.2"),
    ],
)
def test_a_faulty_canary_is_rolled_back_automatically(fault: str, bound: str, reason: str, served: ServedProject) -> None:
    bounds_of_fault = {**LENIENT, bound: {"error_rate": 0.01, "latency": 2, "distribution": 0.2}[bound]}
    with served.load() as load, pytest.raises(RolloutAborted, match=reason) as caught:
        served.roll_out(
            ReplicaSpec("digits", "2", fault), strategy="canary", steps=[30, 60], bake="30s", bounds=bounds_of_fault
        )
    assert caught.value.exit_code == 4
    assert "digits@2 left its bounds (canary 30 %)" in caught.value.message and "digits@1 keeps serving" in caught.value.message
    assert caught.value.facts["bound"] == bound and caught.value.facts["requests"] >= 50
    assert {failure[:3] for failure in load.failures} == ({"500"} if fault == "errors" else set())
    served.assert_serves("1")
    with served.load() as load:
        load.wait_for("1", 100)
    assert load.failures == [] and set(load.answers) == {"1"}


def test_a_release_whose_canary_fails_records_the_measurements_in_the_journal(
    served: ServedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "runner_for", lambda *_: served.runner)  # test replicas instead of bentos
    recipe = parse_recipe(TINY_TABLE.replace("name: tiny", "name: digits"), "recipes/digits.yaml")

    def release(version: str, fault: str, bake: str) -> None:
        config = RolloutConfig(strategy="canary", steps=[20, 50], bake=bake, bounds=Bounds(latency=50, distribution=99))
        wanted = recipe.model_copy(update={"serve": recipe.serve.model_copy(update={"rollout": config})})
        candidate, packaged = Version("digits", version, "run", Path(), {}), PackagedVersion(bento=fault)
        deploy.roll_out_version(wanted, candidate, packaged, served.project.using(served.settings), served.reports.append)
        gateway.finalize(served.project.using(served.settings), "digits")  # as a release does at its end

    with served.load() as load:
        release("5", "good", bake="1s")
        load.wait_for("5", 100)
        with pytest.raises(RolloutAborted):
            release("6", "errors", bake="30s")  # ends as soon as the bound is left
        load.wait_for("5")
    entries = journal.entries(served.project, "digits")
    assert [(e.event, e.version, e.facts["step"]) for e in entries] == [
        ("rollout-step", "5", "canary 20 %"),
        ("rollout-step", "5", "canary 50 %"),
        ("rollout-failed", "6", "canary 20 %"),
    ]
    facts = entries[-1].facts
    assert (facts["bound"], facts["bento"], facts["serving"]) == ("error_rate", "errors", "5") and facts["error_rate"] > 0.05
    assert history.when_rolled_back(entries, "6") == entries[-1]
    served.assert_serves("5")


def test_a_canary_with_too_few_requests_continues_and_says_so(served: ServedProject) -> None:
    served.roll_out(ReplicaSpec("digits", "3", "good"), strategy="canary", steps=[50], bake="1s")
    served.assert_serves("3")
    assert not served.recorded[0]["judged"]
    assert any("canary 50 %, not judged: 0 requests came" in line for line in served.reports)
    assert not any("passed" in line for line in served.reports)


def test_a_shadow_is_compared_with_the_champion_and_its_answers_reach_no_client(served: ServedProject) -> None:
    wrong = {**LENIENT, "agreement": 0.8}
    with (
        served.load() as load,
        pytest.raises(RolloutAborted, match=r"agrees with the champion on .*; agreement requires 80") as caught,
    ):
        served.roll_out(ReplicaSpec("digits", "2", "other"), strategy="shadow", steps=[50], bake="2s", bounds=wrong)
    assert 0.3 < caught.value.facts["agreement"] < 0.7
    assert load.failures == [] and set(load.answers) == {"1"}
    served.assert_serves("1")
    with served.load() as load:
        served.roll_out(ReplicaSpec("digits", "2", "good"), strategy="shadow", steps=[50], bake="2s", bounds=wrong)
        load.wait_for("2")
    assert load.failures == []
    served.assert_serves("2")
    assert served.recorded[0]["agreement"] == 1.0 and served.recorded[0]["compared"] > 50


def test_a_version_that_fails_after_it_went_live_is_rolled_back(served: ServedProject) -> None:
    with served.load() as load:
        load.wait_for("1", 200)
        with pytest.raises(RolloutAborted, match=r"digits@2 left its bounds \(version 2 live\)"):
            served.roll_out(ReplicaSpec("digits", "2", "errors"), bake="30s", bounds={**LENIENT, "error_rate": 0.01})
        load.wait_for("1", 100)
    assert {failure[:3] for failure in load.failures} == {"500"}
    served.assert_serves("1")


def test_the_next_roll_out_cleans_up_after_a_killed_trial(served: ServedProject) -> None:
    with served.load() as load:
        killed = in_another_process(served)
        deadline = time.monotonic() + 30
        while gateway.traffic(served.project, "digits") == Traffic():
            assert time.monotonic() < deadline and killed.poll() is None
            time.sleep(0.02)
        killed.kill()
        killed.wait()
        load.wait_for("1")
        served.roll_out(ReplicaSpec("digits", "4", "good"))
        load.wait_for("4")
    assert load.failures == []
    served.assert_serves("4")


def in_another_process(served: ServedProject) -> subprocess.Popen[bytes]:
    """A trial of version 2, to be killed."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from headrace.project import Project
from headrace.recipe.serve import RolloutConfig
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.settings import Settings
from tests.serving.served_project import ServedProject
settings = Settings(**{json.loads(served.settings.model_dump_json())!r})
served = ServedProject(Project(Path({str(served.project.root)!r})), settings)
served.roll_out(ReplicaSpec("digits", "2", "good"), strategy="canary", steps=[50], bake="60s")
"""
    return subprocess.Popen([sys.executable, "-c", code])
