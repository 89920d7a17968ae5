"""Releases under a steady load: replicas are swapped, and no request fails. As processes and as containers."""

from __future__ import annotations

import json
import shutil

import httpx
import pytest
import yaml

from headrace.settings import Settings
from tests.paths import ROOT
from tests.release.live import INSTANCE, SECONDS, Live, another_recipe, steps_until
from tests.serving.load import PAUSE_SECONDS, Load


def release_under_load(live: Live, name: str, runner: str, versions: str) -> Load:
    """Releases version 1 of a model, then `versions` while clients call it."""
    another_recipe(live, name, serve={"replicas": 2})
    live.run("run", name, "--runner", runner)
    with Load(
        int(live.ports["HEADRACE_GATEWAY_PORT"]), name, fast=2, slow=2, fresh=1, instance=INSTANCE, token=live.token
    ) as load:
        load.wait_for("1")
        for version in versions:
            path = live.project.recipes / f"{name}.yaml"
            recipe = yaml.safe_load(path.read_text())
            recipe["train"]["seed"] = int(version)
            path.write_text(yaml.safe_dump(recipe))
            load.pause_seconds = 0.2  # while nothing happens to the replicas
            process = live.start("run", name, "--runner", runner, "--json")
            assert steps_until(process, "package")[-1] == "package"
            load.pause_seconds = PAUSE_SECONDS
            released, said = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said
            assert json.loads(released)["version"] == version
            load.wait_for(version)
    return load


def test_no_request_fails_while_processes_are_swapped(live: Live) -> None:
    load = release_under_load(live, "swapped", "process", "2")
    assert load.failures == []
    assert all(load.answers[version] for version in "12")


@pytest.mark.parametrize("runner", ["docker", "process"])
def test_where_replicas_run_may_change_without_a_lost_request(live: Live, docker_engine: Settings, runner: str) -> None:
    """From processes to containers, and back."""
    shutil.copytree(ROOT / "wheelhouse", live.project.wheelhouse, dirs_exist_ok=True)
    with Load(
        int(live.ports["HEADRACE_GATEWAY_PORT"]), "swapped", fast=2, slow=2, fresh=1, instance=INSTANCE, token=live.token
    ) as load:
        load.wait_for("2")
        live.run("run", "swapped", "--runner", runner)
        load.wait_for("2", 200)
    assert load.failures == []
    model = next(m for m in live.json("status")["models"] if m["name"] == "swapped")
    assert (model["replicas"], model["ready"], model["runner"]) == (2, 2, runner)
    assert ("image" in {link["link"] for link in live.json("trace", "swapped@2")["chain"]}) == (runner == "docker")
    assert live.run("logs", "swapped").stdout


@pytest.mark.exhaustive
def test_no_request_fails_while_containers_are_swapped(live: Live, docker_engine: Settings) -> None:
    shutil.copytree(ROOT / "wheelhouse", live.project.wheelhouse, dirs_exist_ok=True)
    load = release_under_load(live, "shipped", "docker", "2")
    assert load.failures == []
    assert all(load.answers[version] for version in "12")


def test_access_changes_by_up_alone_and_a_release_before_it_is_refused(live: Live) -> None:
    opened = {"HEADRACE_ACCESS": "open"}
    address = f"{live.door}/v1/models/tiny"
    with Load(
        int(live.ports["HEADRACE_GATEWAY_PORT"]), "tiny", fast=2, slow=1, fresh=1, instance=INSTANCE, token=live.token
    ) as load:
        load.wait_for("1")
        assert live.json("run", "tiny", code=2, environment=opened)["hint"].startswith("headrace up")
        assert httpx.get(address).status_code == 401
        live.run("up", environment=opened)
        assert httpx.get(address).status_code == 200
        live.run("up")
        assert httpx.get(address).status_code == 401
        load.wait_for("1")
    assert load.failures == []
