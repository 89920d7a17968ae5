"""A release as a canary, and back again, by the real command line, on real replicas, under load."""

from __future__ import annotations

import shutil
import time

import pytest
import yaml

from headrace.release import journal
from headrace.serving.access import audit
from headrace.tracking import registry
from tests.release.live import INSTANCE, Live, another_recipe
from tests.serving.load import Load

WHY = ("--why", "wrong colours")


def test_a_canary_is_released_then_rolled_back_in_seconds_and_stays_back(live: Live) -> None:
    name = another_recipe(live, "backward", serve={"replicas": 2})
    live.run("run", name)
    assert "no version of 'backward' served before 1" in live.json("rollback", name, code=2)["message"]
    path = live.project.recipes / f"{name}.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["train"]["seed"] = 2
    recipe["serve"]["rollout"] = {"strategy": "canary", "steps": [50], "bake": "8s", "bounds": {"latency": 20}}
    path.write_text(yaml.safe_dump(recipe))
    gateway_port = int(live.ports["HEADRACE_GATEWAY_PORT"])
    with Load(gateway_port, name, fast=2, slow=1, fresh=1, instance=INSTANCE, token=live.token) as load:
        load.wait_for("1")
        assert live.json("run", name)["version"] == "2"
        began = time.monotonic()
        back = live.json("rollback", name, *WHY)
        seconds = time.monotonic() - began
        load.wait_for("1")
        assert (back["version"], back["rolled_back"]) == ("1", {"from": "2", "why": "wrong colours", "by": audit.user()})
        error = live.json("run", name, code=4)
        assert f"{name}@2 was rolled back" in error["message"] and f"by {audit.user()}: wrong colours" in error["message"]
        assert f"{name}@1 keeps serving" in error["message"] and "--force" in error["hint"]
        assert live.serving(name) == "1"
    assert load.failures == [] and seconds < 60  # a bound for a machine that does much else; it takes a few seconds
    assert registry.get(name, live.project).version == "1"
    entries = journal.entries(live.project, name)
    assert [(e.event, e.version) for e in entries] == [
        ("released", "1"),
        ("rollout-step", "2"),
        ("released", "2"),
        ("rolled-back", "1"),
    ]
    step = entries[1].facts
    assert step["step"] == "canary 50 %" and step["judged"] and step["requests"] > 50 and "psi" in step, (
        "replicas tell their answers"
    )
    assert "rollback" in {entry.act for entry in audit.entries(live.project)}
    assert f"rolled back by {audit.user()}: wrong colours" in live.run("history", name).stdout


@pytest.mark.exhaustive
def test_a_rollback_whose_bento_is_gone_says_how_to_rebuild_it(live: Live) -> None:
    name = "backward"
    assert f"{name}@7 never served" in live.json("rollback", name, "--to", "7", code=2)["message"]
    assert "in production already" in live.json("rollback", name, "--to", f"{name}@1", code=2)["message"]
    bento = next(e for e in journal.entries(live.project, name) if e.version == "2" and e.event == "released").facts["bento"]
    shutil.rmtree(live.project.bentoml_home / "bentos" / bento.replace(":", "/"))
    error = live.json("rollback", name, "--to", "2", code=5)
    assert f"the bento {bento} is gone" in error["message"]
    assert live.serving(name) == "1"
    assert f"headrace rollback {name} --to 2 --rebuild" in error["hint"]
    live.run("rollback", name, "--to", "2", "--rebuild")
    assert live.serving(name) == "2"
    assert live.json("run", name)["version"] == "2", "what was brought back on purpose stays"
    assert live.json("scale", name, "1")["replicas"] == 1


@pytest.mark.exhaustive
def test_a_version_of_which_nothing_is_left_is_rebuilt_and_serves_again(live: Live) -> None:
    name = "backward"
    released = next(e for e in journal.entries(live.project, name) if e.version == "1" and e.event == "released").facts
    for store in ("bentos", "models"):
        shutil.rmtree(live.project.bentoml_home / store / released["bento"].replace(":", "/"))
    shutil.rmtree(registry.get(f"{name}@1", live.project).folder)
    found = live.json("rebuild", f"{name}@1")
    assert found["source"].startswith("training again") and found["content_sha256"] == released["content_sha256"]
    live.run("rollback", name, "--to", "1")
    assert live.serving(name) == "1"
