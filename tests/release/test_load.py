"""Releases under a steady load: replicas are swapped, and no request fails. As processes and as containers."""

from __future__ import annotations

import json
import shutil

import httpx
import pytest
import yaml

from headrace.settings import Settings
from tests.exhaustive import exhaustive
from tests.paths import ROOT
from tests.release.live import INSTANCE, SECONDS, Live, another_recipe, steps_until
from tests.serving.load import PAUSE_SECONDS, Load


def release_under_load(live: Live, name: str, runner: str) -> Load:
    """Releases a new version of a model, which two replicas serve, while clients call it."""
    before = live.serving(name)
    path = live.project.recipes / f"{name}.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["train"]["seed"] = 101 + int(before)
    recipe["serve"] = {"replicas": 2}
    path.write_text(yaml.safe_dump(recipe))
    with clients(live, name) as load:
        load.wait_for(before)
        load.pause_seconds = 0.2  # while nothing happens to the replicas
        process = live.start("run", name, "--runner", runner, "--json")
        assert steps_until(process, "package")[-1] == "package"
        load.pause_seconds = PAUSE_SECONDS
        released, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
        after = json.loads(released)["version"]
        load.wait_for(after)
    assert after != before and load.answers[before] and load.answers[after]
    return load


def clients(live: Live, name: str, slow: int = 2) -> Load:
    return Load(int(live.ports["HEADRACE_GATEWAY_PORT"]), name, fast=2, slow=slow, fresh=1, instance=INSTANCE, token=live.token)


@pytest.mark.exhaustive  # as in containers below, and as in tests/serving/rollout
def test_no_request_fails_while_processes_are_swapped(live: Live, second: str) -> None:
    assert release_under_load(live, second, "process").failures == []


@pytest.mark.parametrize("runner", ["docker", exhaustive("process")])
def test_where_replicas_run_may_change_without_a_lost_request(
    live: Live, second: str, docker_engine: Settings, runner: str
) -> None:
    """From processes to containers, and back."""
    shutil.copytree(ROOT / "wheelhouse", live.project.wheelhouse, dirs_exist_ok=True)
    version = live.serving(second)
    with clients(live, second) as load:
        load.wait_for(version)
        live.run("run", second, "--runner", runner)
        load.wait_for(version, 200)
    assert load.failures == []
    model = next(m for m in live.json("status")["models"] if m["name"] == second)
    assert (model["replicas"], model["ready"], model["runner"]) == (2, 2, runner)
    assert ("image" in {link["link"] for link in live.json("trace", f"{second}@{version}")["chain"]}) == (runner == "docker")
    assert live.run("logs", second).stdout


@pytest.mark.exhaustive
def test_no_request_fails_while_containers_are_swapped(live: Live, docker_engine: Settings) -> None:
    shutil.copytree(ROOT / "wheelhouse", live.project.wheelhouse, dirs_exist_ok=True)
    name = another_recipe(live, "shipped", serve={"replicas": 2})
    live.run("run", name, "--runner", "docker")
    assert release_under_load(live, name, "docker").failures == []


@pytest.mark.exhaustive  # as in tests/serving/gateway/test_changed_settings.py
def test_access_changes_by_up_alone_and_a_release_before_it_is_refused(live: Live) -> None:
    opened = {"HEADRACE_ACCESS": "open"}
    address = f"{live.gateway}/v1/models/tiny"
    with clients(live, "tiny", slow=1) as load:
        load.wait_for("1")
        assert live.json("run", "tiny", code=2, environment=opened)["hint"].startswith("headrace up")
        assert httpx.get(address).status_code == 401
        live.run("up", environment=opened)
        assert httpx.get(address).status_code == 200
        live.run("up")
        assert httpx.get(address).status_code == 401
        load.wait_for("1")
    assert load.failures == []
