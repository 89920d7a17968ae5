"""Releases that are killed while their new version bakes, by the real command line, on real replicas, under load."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from sqlalchemy.engine import Engine

from headrace.release import journal
from headrace.serving.gateway import gateway
from headrace.serving.replicas import project_processes, supervisor
from headrace.settings import Settings
from headrace.tracking import registry
from tests.paths import ROOT
from tests.projects import git
from tests.release.live import INSTANCE, Live, another_recipe, kill_group, steps_until
from tests.serving.load import PAUSE_SECONDS, Load


@pytest.fixture(scope="module")
def baked(live: Live, second: str) -> str:
    """A model whose version 1 is released; its next version is to be watched for long."""
    change(live, second, bake="10m")
    return second


def change(live: Live, name: str, bake: str) -> None:
    path = live.project.recipes / f"{name}.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["train"]["seed"] = 2
    recipe["serve"]["rollout"] = {"bake": bake, "bounds": {"latency": 50}}
    path.write_text(yaml.safe_dump(recipe))


def clients(live: Live, name: str) -> Load:
    return Load(int(live.ports["HEADRACE_GATEWAY_PORT"]), name, fast=2, slow=1, fresh=1, instance=INSTANCE, token=live.token)


def kill_while_it_bakes(live: Live, name: str, load: Load, *how: str) -> None:
    """Kills the watchdog too, which could be quicker than the test."""
    load.pause_seconds = 0.2  # while nothing happens to the replicas
    process = live.start("run", name, *how)
    assert steps_until(process, "package")[-1] == "package"
    load.pause_seconds = PAUSE_SECONDS
    load.wait_for("2")
    supervisor.stop(live.project, "watchdog", 3.0)
    kill_group(process)


def shown(live: Live, name: str) -> Any:
    model = next(model for model in live.status()["models"] if model["name"] == name)
    return model["version"], model["alias"], model["predecessor"]


def run_one_repair(live: Live, name: str) -> None:
    command = [sys.executable, "-m", "headrace.services.repairs", "roll-back-interrupted", name]
    subprocess.run(command, cwd=live.project.root, env=live.environment, check=True)


def test_the_released_version_serves_again_and_every_command_shows_it(live: Live, baked: str) -> None:
    with clients(live, baked) as load:
        kill_while_it_bakes(live, baked, load)
        assert shown(live, baked) == ("2", None, "1")
        assert f"{baked}@2 is not released yet: {baked}@1 is restored" in live.run("status", code=5).stdout  # no watchdog
        registry.move_champion(baked, "2", live.project)  # as a kill leaves it just before the journal's line
        run_one_repair(live, baked)
        load.wait_for("1")
        assert shown(live, baked) == ("1", "champion", None)
    assert load.failures == []
    traced = live.json("trace", baked)
    assert (traced["version"], traced["aliases"]) == ("1", ["champion"])
    assert live.json("trace", f"{baked}@2")["released_at"] is None
    assert f"its release was interrupted; {baked}@1 serves" in live.run("history", baked).stdout


@pytest.mark.exhaustive  # the same recovery, by another command
def test_after_a_reboot_the_version_that_was_released_serves(live: Live, baked: str) -> None:
    with clients(live, baked) as load:
        kill_while_it_bakes(live, baked, load)
    assert load.failures == []
    for process in [*project_processes.find_supervisords(live.project), *supervisor.supervised_processes(live.project)]:
        process.kill()
    psutil.wait_procs(supervisor.supervised_processes(live.project), timeout=10)
    live.run("up")
    assert shown(live, baked) == ("1", "champion", None)
    assert live.json("predict", baked, "--sample")["version"] == "1"


def test_the_same_command_again_goes_through_the_bake_again(live: Live, baked: str) -> None:
    with clients(live, baked) as load:
        load.wait_for("1")
        kill_while_it_bakes(live, baked, load)
        change(live, baked, bake="2s")
        again = live.run("run", baked)
        load.wait_for("2")
    assert load.failures == []
    assert f"recover  an earlier release of {baked} was interrupted" in again.stderr
    assert "version 2 live, passed" in again.stderr
    assert shown(live, baked) == ("2", "champion", None)
    entries = [(e.event, e.version) for e in journal.entries(live.project, baked)]
    abandoned = entries.count(("rollout-abandoned", "2"))  # one for each release that was killed, in the tests above too
    assert abandoned >= 1
    assert entries == [
        ("released", "1"),
        *[("rollout-abandoned", "2")] * abandoned,
        ("rollout-step", "2"),
        ("released", "2"),
    ]


def answer(live: Live, name: str) -> bytes:
    """The bytes of an answer whose request id is given."""
    headers = {**live.headers, "content-type": "application/json", "x-request-id": "the-same"}
    content = json.dumps({"instances": [INSTANCE]}).encode()
    asked = urllib.request.Request(f"{live.gateway}/v1/models/{name}/predict", content, headers)
    with urllib.request.urlopen(asked, timeout=60) as found:
        return bytes(found.read())


def close_connections(folder: Path) -> None:
    """Closes the connections of this process to databases in a folder; later tests would go on with the deleted files."""
    for engine in [found for found in gc.get_objects() if type(found) is Engine]:
        if Path(engine.url.database or "").is_relative_to(folder):
            engine.dispose()


def test_a_backup_alone_gives_the_same_answer_after_everything_else_was_deleted(live: Live, baked: str, tmp_path: Path) -> None:
    live.run("up")
    before, history = answer(live, baked), live.json("history", baked)
    archive = tmp_path / "project.backup"
    live.run("backup", str(archive))
    live.run("restore", str(archive), "--replace", code=6)  # services run
    live.run("down")
    git(live.project.root, "clone", "--quiet", "--bare", ".", str(tmp_path / "repository"))
    close_connections(live.project.root)
    shutil.rmtree(live.project.root)
    git(tmp_path, "clone", "--quiet", "repository", str(live.project.root))
    live.run("restore", str(archive))
    live.run("up")
    assert answer(live, baked) == before
    assert live.json("history", baked) == history
    assert live.json("trace", baked)["version"] == live.serving(baked)


@pytest.mark.exhaustive
def test_containers_that_stood_by_serve_again(live: Live, docker_engine: Settings) -> None:
    shutil.copytree(ROOT / "wheelhouse", live.project.wheelhouse, dirs_exist_ok=True)
    name = another_recipe(live, "crated", serve={"replicas": 1})
    live.run("run", name, "--runner", "docker")
    before = gateway.endpoints_by_model(live.project)[name]
    change(live, name, bake="10m")
    with clients(live, name) as load:
        kill_while_it_bakes(live, name, load, "--runner", "docker")
        run_one_repair(live, name)
        load.wait_for("1")
    assert load.failures == []
    assert shown(live, name) == ("1", "champion", None)
    assert gateway.endpoints_by_model(live.project)[name] == before
