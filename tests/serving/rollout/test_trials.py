"""New versions on trial beside a champion, under load: real Envoy, real processes, real misbehaviour."""

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
from headrace.recipe.rollout import Bounds, RolloutConfig
from headrace.release import deploy, history, journal
from headrace.release.deploy import Package
from headrace.serving.gateway import gateway
from headrace.serving.gateway.clusters import Traffic
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.tracking.registry import Version
from tests.conftest import TINY_TABLE
from tests.paths import ROOT
from tests.serving.tenants import CHAMPION, House, open_house

LENIENT = {"error_rate": 0.9, "latency": 50, "distribution": 99, "agreement": 0.01}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(tmp_path_factory.mktemp("trials") / "clone") as found:
        yield found


@pytest.fixture(autouse=True)
def champion(house: House) -> None:
    house.roll_out(CHAMPION)


def test_a_good_canary_goes_step_by_step_and_then_serves_alone(house: House) -> None:
    with house.load() as load:
        load.wait_for("1", 50)
        house.roll_out(ReplicaSpec("digits", "2", "good"), strategy="canary", steps=[10, 50], bake="1.5s", bounds=LENIENT)
        assert load.failures == []
        load.wait_for("2", 50)
        last = load.answers["1"]
        load.wait_for("2", 50)
        assert load.answers["1"] == last, "the champion is gone"
    assert load.failures == []
    house.serves("2")
    assert [fact["step"] for fact in house.noted] == ["canary 10 %", "canary 50 %"]
    small, large = house.noted
    share = large["requests"] / (large["requests"] + large["champion_requests"])
    assert 0.4 < share < 0.6 and small["requests"] < large["requests"]
    assert large["judged"] and large["psi"] < 0.2 and "p99_seconds" in large
    assert any(re.search(r"canary 50 %, passed: .* requests, errors 0.00% .*p99 \d+ ms .*PSI 0\.", line) for line in house.said)


@pytest.mark.parametrize(
    ("mood", "bound", "said"),
    [
        ("errors", "error_rate", r"requests failed, and 0.0% of the champion's; error_rate allows 1.0% more"),
        ("slow", "latency", r"99th percentile is \d+ ms, and the champion's \d+ ms; latency allows"),
        ("other", "distribution", r"population stability index \d.*; distribution allows 0.2"),
    ],
)
def test_a_canary_that_misbehaves_is_taken_back_by_itself(mood: str, bound: str, said: str, house: House) -> None:
    patient = {**LENIENT, bound: {"error_rate": 0.01, "latency": 2, "distribution": 0.2}[bound]}
    with house.load() as load, pytest.raises(RolloutAborted, match=said) as caught:
        house.roll_out(ReplicaSpec("digits", "2", mood), strategy="canary", steps=[30, 60], bake="30s", bounds=patient)
    assert caught.value.exit_code == 4
    assert "digits@2 left its bounds (canary 30 %)" in caught.value.message and "digits@1 serves on" in caught.value.message
    assert caught.value.facts["bound"] == bound and caught.value.facts["requests"] >= 50
    assert {failure[:3] for failure in load.failures} == ({"500"} if mood == "errors" else set())
    house.serves("1")
    with house.load() as load:
        load.wait_for("1", 100)
    assert load.failures == [] and set(load.answers) == {"1"}


def test_a_release_whose_canary_fails_keeps_the_numbers_in_the_journal(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "runner_for", lambda *_: house.runner)  # replicas of these tests instead of bentos
    recipe = parse_recipe(TINY_TABLE.replace("name: tiny", "name: digits"), "recipes/digits.yaml")
    how = RolloutConfig(strategy="canary", steps=[20, 50], bake="1s", bounds=Bounds(latency=50, distribution=99))
    recipe = recipe.model_copy(update={"serve": recipe.serve.model_copy(update={"rollout": how})})

    def release(version: str, mood: str) -> None:
        candidate, packaged = Version("digits", version, "run", Path(), {}), Package(bento=mood)
        deploy.roll_out_version(recipe, candidate, packaged, house.project, house.settings, house.said.append)
        gateway.settle(house.project, house.settings, "digits")  # as the release does, once the journal has its line

    with house.load() as load:
        release("5", "good")
        load.wait_for("5", 100)
        with pytest.raises(RolloutAborted):
            release("6", "errors")
        load.wait_for("5")
    entries = journal.entries(house.project, "digits")
    assert [(e.event, e.version, e.facts["step"]) for e in entries] == [
        ("rollout-step", "5", "canary 20 %"),
        ("rollout-step", "5", "canary 50 %"),
        ("rollout-failed", "6", "canary 20 %"),
    ]
    facts = entries[-1].facts
    assert (facts["bound"], facts["bento"], facts["serving"]) == ("error_rate", "errors", "5") and facts["error_rate"] > 0.05
    assert history.when_taken_back(entries, "6") == entries[-1]
    house.serves("5")


def test_a_canary_with_too_few_requests_goes_on_with_a_note(house: House) -> None:
    house.roll_out(ReplicaSpec("digits", "3", "good"), strategy="canary", steps=[50], bake="1s")
    house.serves("3")
    assert not house.noted[0]["judged"]
    assert any("canary 50 %, not judged: 0 requests came" in line for line in house.said)
    assert not any("passed" in line for line in house.said)


def test_a_shadow_is_held_against_the_champion_and_nobody_gets_its_answers(house: House) -> None:
    wrong = {**LENIENT, "agreement": 0.8}
    with house.load() as load, pytest.raises(RolloutAborted, match="as the champion does; agreement asks for 80") as caught:
        house.roll_out(ReplicaSpec("digits", "2", "other"), strategy="shadow", steps=[50], bake="2s", bounds=wrong)
    assert 0.3 < caught.value.facts["agreement"] < 0.7
    assert load.failures == [] and set(load.answers) == {"1"}
    house.serves("1")
    with house.load() as load:
        house.roll_out(ReplicaSpec("digits", "2", "good"), strategy="shadow", steps=[50], bake="2s", bounds=wrong)
        load.wait_for("2")
    assert load.failures == []
    house.serves("2")
    assert house.noted[0]["agreement"] == 1.0 and house.noted[0]["compared"] > 50


def test_a_version_that_fails_after_it_went_live_is_taken_back(house: House) -> None:
    with house.load() as load:
        load.wait_for("1", 200)
        with pytest.raises(RolloutAborted, match=r"digits@2 left its bounds \(version 2 live\)"):
            house.roll_out(ReplicaSpec("digits", "2", "errors"), bake="30s", bounds={**LENIENT, "error_rate": 0.01})
        load.wait_for("1", 100)
    assert {failure[:3] for failure in load.failures} == {"500"}
    house.serves("1")


def test_what_a_killed_trial_left_is_ended_by_the_next_roll_out(house: House) -> None:
    with house.load() as load:
        killed = in_another_process(house)
        deadline = time.monotonic() + 30
        while gateway.traffic(house.project, "digits") == Traffic():
            assert time.monotonic() < deadline and killed.poll() is None
            time.sleep(0.02)
        killed.kill()
        killed.wait()
        load.wait_for("1")
        house.roll_out(ReplicaSpec("digits", "4", "good"))
        load.wait_for("4")
    assert load.failures == []
    house.serves("4")


def in_another_process(house: House) -> subprocess.Popen[bytes]:
    """A trial of version 2, to be killed."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from headrace.project import Project
from headrace.recipe.rollout import RolloutConfig
from headrace.serving.rollout import door
from headrace.serving.gateway.clusters import Traffic
from headrace.serving.replicas.replica import ReplicaSpec
from tests.conftest import TINY_TABLE
from tests.serving.tenants import CHAMPION, House, open_house
from headrace.settings import Settings
from tests.conftest import TINY_TABLE
from tests.serving.tenants import House
house = House(Project(Path({str(house.project.root)!r})), Settings(**{json.loads(house.settings.model_dump_json())!r}))
house.roll_out(ReplicaSpec("digits", "2", "good"), strategy="canary", steps=[50], bake="60s")
"""
    return subprocess.Popen([sys.executable, "-c", code])
