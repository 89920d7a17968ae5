"""A whole release through the command line, with every tool at work."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from headrace.release import journal
from headrace.tracking import runs
from tests.projects import table
from tests.release.live import Live, another_recipe
from tests.written_files import readable_by_others


def edit_recipe(live: Live, **sections: dict[str, object]) -> None:
    path = live.project.recipes / "tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    for name, fields in sections.items():
        recipe[name] = {**(recipe.get(name) or {}), **fields}
    path.write_text(yaml.safe_dump(recipe))


def test_status_names_models_and_services(live: Live) -> None:
    found = live.json("status")
    model = next(m for m in found["models"] if m["name"] == "tiny")
    assert (model["replicas"], model["ready"], model["alias"]) == (2, 2, "champion")
    assert model["address"].startswith(live.gateway)
    assert {s["name"]: s["state"] for s in found["services"]} == {
        "prefect-server": "ready",
        "prefect-worker": "ready",
        "mlflow": "ready",
        "envoy": "ready",
        "api-server": "ready",
        "watchdog": "ready",
    }


def test_what_a_release_and_the_services_write_is_private_and_what_git_tracks_is_not(live: Live) -> None:
    assert readable_by_others(live.project) == []
    umask = os.umask(0o022)
    os.umask(umask)
    modes = {name: stat.S_IMODE((live.project.root / name).stat().st_mode) for name in ("dvc.lock", "dvc.yaml", "data.dvc")}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


def test_predict_sends_the_sample_through_the_balancer(live: Live) -> None:
    answer = live.json("predict", "tiny", "--sample")
    assert answer["predictions"][0]["label"] in ("big", "small")
    assert answer["id"].startswith(f"tiny@{answer['version']}:")


def test_predict_takes_an_instance_and_names_a_wrong_field(live: Live) -> None:
    good = '{"length": 30.0, "width": 1.0, "colour": "red"}'
    assert live.json("predict", "tiny", "--instance", good)["predictions"][0]["label"] == "big"
    error = live.json("predict", "tiny", "--instance", '{"length": "long", "width": 1.0, "colour": "red"}', code=3)
    assert "instances.0.length" in error["message"]
    assert "did you mean" in live.json("predict", "tiny", "--file", "sourc.csv", code=2)["message"]


def test_an_unserved_model_is_named(live: Live) -> None:
    assert "tyni" in live.json("predict", "tyni", "--sample", code=2)["message"]


def test_a_second_run_finds_nothing_changed(live: Live) -> None:
    live.run("run", "tiny")
    before = journal.entries(live.project)
    result = live.json("run", "tiny")
    assert result["unchanged"] is True
    assert journal.entries(live.project) == before


@pytest.mark.parametrize("on_path", [True, False], ids=["on PATH", "by make alone"])
def test_the_curl_line_of_the_summary_works_when_pasted(live: Live, on_path: bool) -> None:
    program = Path(sys.executable).with_name("headrace")
    path = live.environment["PATH"] if on_path else os.environ["PATH"].replace(str(program.parent), "")
    asked: dict[str, Any] = {
        "capture_output": True,
        "text": True,
        "env": {**live.environment, "PATH": path},
        "cwd": live.project.root,
    }
    shown = subprocess.run([program, "run", "tiny"], **asked).stdout
    line = next(line for line in shown.splitlines() if line.startswith("curl "))
    assert ("$(headrace tokens show)" in line) == on_path
    pasted = subprocess.run(["bash", "-c", line], **asked)
    assert json.loads(pasted.stdout)["model"] == "tiny", pasted.stderr


def test_the_summary_shows_what_a_person_asks(live: Live) -> None:
    shown = live.run("run", "tiny").stdout
    for part in (
        "data ",
        "expectations",
        "training",
        "test ",
        "gate",
        "version",
        "bento",
        "replicas",
        "service",
        "MLflow",
        "Prefect",
        "Data Docs",
    ):
        assert part in shown
    assert re.search(r"expectations +\d+ of \d+ passed", shown)


def test_trace_leads_to_the_bytes(live: Live) -> None:
    answer = live.json("predict", "tiny", "--sample")
    chain = live.json("trace", answer["id"])
    links = {link["link"]: link["id"] for link in chain["chain"]}
    assert links["bento"].startswith("tiny:1-")
    assert (
        links["git commit"]
        == subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=live.project.root, capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    assert links["data"] == live.json("data", "show", "tiny")["md5"]
    lock = yaml.safe_load((live.project.root / "dvc.lock").read_text())
    deps = {dep["path"]: dep["md5"] for dep in lock["stages"]["prepare@tiny"]["deps"]}
    assert links["data"] == deps["data/tiny"]


def test_the_registered_version_has_identity_signature_and_example(live: Live) -> None:
    from headrace.tracking import registry

    version = registry.get("tiny@champion", live.project)
    assert {"data_md5", "git_commit", "lock_sha256", "content_sha256", "run_id"} <= version.identity.keys()
    described = yaml.safe_load((version.folder / "MLmodel").read_text())
    assert described["signature"]["inputs"] and described["saved_input_example_info"]


def test_mlflow_has_the_curves_and_the_pictures_of_the_run(live: Live) -> None:
    from headrace.tracking import registry
    from headrace.tracking.runs import client

    version = registry.get("tiny", live.project)
    store = client(live.project)
    assert [point.step for point in store.get_metric_history(version.run_id, "val_loss")] == [1, 2, 3]
    pictures = {Path(found.path).name for found in store.list_artifacts(version.run_id, "evaluation")}
    assert {"confusion.png", "curves.png", "evaluation.json"} <= pictures
    assert store.get_run(version.run_id).data.params["train.learning_rate"] == "0.02"


def test_the_flow_is_in_prefect_with_all_its_steps(live: Live) -> None:
    runs = live.prefect("/task_runs/filter", "POST", {})
    named = {run["name"].rsplit("-", 1)[0] for run in runs}
    assert {
        "ingest",
        "validate",
        "prepare",
        "train",
        "export",
        "evaluate",
        "register",
        "judge",
        "package",
        "roll out",
        "promote",
        "record",
    } <= named
    deployments = {d["name"] for d in live.prefect("/deployments/filter", "POST", {})}
    assert deployments == {"release", "backfill", "search"}


@pytest.mark.exhaustive  # as a schedule does
def test_a_deployment_runs_from_prefect_with_parameters(live: Live) -> None:
    deployment = next(d for d in live.prefect("/deployments/filter", "POST", {}) if d["name"] == "release")
    started = {"parameters": {"recipe_name": "tiny"}}
    run = live.prefect(f"/deployments/{deployment['id']}/create_flow_run", "POST", started)
    state = None
    for _ in range(240):
        state = live.prefect(f"/flow_runs/{run['id']}")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED"):
            break
        time.sleep(0.5)
    assert state is not None and state["type"] == "COMPLETED", state


EVERY_MINUTE = """
  - name: every-minute
    entrypoint: flows/release.py:release
    parameters: {recipe_name: scheduled}
    work_pool: {name: headrace}
    schedules: [{cron: "* * * * *"}]
"""


def test_a_schedule_releases_a_model_by_itself(live: Live) -> None:
    name = another_recipe(live, "scheduled")
    file = live.project.root / "prefect.yaml"
    before = file.read_text()
    wanted = {"deployments": {"name": {"any_": ["every-minute"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    try:
        file.write_text(before + EVERY_MINUTE)
        assert "deployment every-minute added" in live.run("up").stderr
        deadline = time.monotonic() + 300
        while not (done := live.prefect("/flow_runs/filter", "POST", wanted)) and time.monotonic() < deadline:
            time.sleep(1)
        assert done and all(run["auto_scheduled"] for run in done)
        assert live.serving(name) == "1"
    finally:
        file.write_text(before)
        assert "deployment every-minute removed" in live.run("up").stderr
    assert {d["name"] for d in live.prefect("/deployments/filter", "POST", {})} == {"release", "backfill", "search"}


def test_dvc_by_hand_finds_everything_up_to_date(live: Live) -> None:
    def dvc(*arguments: str) -> str:
        return subprocess.run(
            ["dvc", *arguments], cwd=live.project.root, env=live.environment, capture_output=True, text=True, check=True
        ).stdout

    assert "Data and pipelines are up to date" in dvc("repro", "evaluate@tiny")
    assert "accuracy" in dvc("metrics", "show", "artifacts/tiny/evaluation/metrics.json")
    assert "index.html" in dvc("plots", "show", "artifacts/tiny/train/curves.csv")
    assert dvc("params", "diff") is not None


def test_a_new_batch_is_validated_then_becomes_a_new_version(live: Live) -> None:
    before = live.json("data", "show", "tiny")
    table(60, seed=2).to_csv(live.project.root / "more.csv", index=False)
    after = live.json("data", "add", "tiny", "more.csv")
    assert after["md5"] != before["md5"]
    assert after["rows"] == before["rows"] + 60


def test_a_bad_batch_goes_to_quarantine_and_the_version_stays(live: Live) -> None:
    before = live.json("data", "show", "tiny")
    bad = table(40, seed=3)
    bad.loc[5, "length"] = 1e6
    bad.to_csv(live.project.root / "bad.csv", index=False)
    error = live.json("data", "add", "tiny", "bad.csv", code=3)
    assert "expect_column_values_to_be_between" in error["message"]
    assert live.json("data", "show", "tiny") == before
    assert list(live.project.quarantine.rglob("report.json"))


def test_a_model_that_is_not_better_is_refused_and_the_champion_serves_also_after_down(live: Live) -> None:
    champion = live.serving("tiny")
    edit_recipe(live, train={"learning_rate": 0.0005, "epochs": 1}, gate={"require": {"accuracy": ">= 0.3"}})
    live.run("down")
    found = live.json("status")
    assert {model["replicas"] for model in found["models"]} <= {0}
    assert {s["state"] for s in found["services"]} == {"stopped"}
    assert "headrace up" in live.json("predict", "tiny", "--sample", code=5)["hint"]
    assert f"tiny@{champion} keeps serving" in live.json("run", "tiny", code=4)["message"]
    assert live.json("predict", "tiny", "--sample")["version"] == champion
    assert journal.entries(live.project, "tiny")[-1].event == "refused"


def test_a_person_approves_before_a_model_serves(live: Live) -> None:
    champion = live.serving("tiny")
    edit_recipe(
        live,
        train={"learning_rate": 0.03, "epochs": 4},
        gate={
            "approval": "manual",
            "approvers": 2,
            "require": {"accuracy": ">= 0.3"},
            "beat_champion": {"metric": "accuracy", "margin": -0.5},
        },
    )
    error = live.json("run", "tiny", code=4)
    assert "waits for approval" in error["message"]
    assert live.json("predict", "tiny", "--sample")["version"] == champion
    waiting = journal.entries(live.project, "tiny")[-1]
    assert waiting.event == "awaiting-approval"
    name = f"tiny@{waiting.version}"
    runs.client(live.project).set_model_version_tag("tiny", waiting.version, "approval", "approved")
    assert f"the tag approval=approved of {name} in MLflow does not count" in live.json("run", "tiny", code=4)["message"]

    run = suspended(live, name)
    assert run["name"] == f"approve-{name}"
    released, states = [(one["name"], one["state"]["name"]) for one in runs_named(live, "tiny")][:1], stage_states(live)
    assert released == [("tiny", "Awaiting approval")] and "Unchanged" in states and "Failed" not in states
    live.run("down")  # the run waits in Prefect's database
    live.run("up")

    ada, vic = (
        {"HEADRACE_TOKEN": live.json("tokens", "issue", "--tenant", who, "--role", role)["token"]}
        for who, role in (("ada", "reviewer"), ("vic", "viewer"))
    )
    there = ("--address", live.gateway)
    seen = [(one["model"], one["version"], one["state"]) for one in live.json("approve", *there, environment=vic)]
    assert ("tiny", waiting.version, "waiting") in seen
    refused = live.json("approve", name, *there, code=5, environment=vic)
    assert "the token of vic has the role viewer" in refused["message"]
    assert live.json("predict", "tiny", "--sample", code=5, environment=ada)["error"] == "Forbidden"
    live.prefect(f"/flow_runs/{run['id']}/resume", "POST", {"run_input": {"decision": "approve", "reason": "well calibrated"}})
    wait_until(lambda: len(live.json("approve")[0]["approvals"]) == 1, 240)
    done = live.json("approve", name, "--why", "better", *there, environment=ada)
    assert (done["by"], done["state"], done["approvals"]) == ("ada", "approved", 2)
    wait_until(lambda: journal.entries(live.project, "tiny")[-1].event == "released", 240)
    wait_until(lambda: live.prefect(f"/flow_runs/{run['id']}")["state"]["type"] == "COMPLETED", 60)
    assert live.json("predict", "tiny", "--sample")["version"] == waiting.version
    history = live.json("history", "tiny")
    assert [entry["event"] for entry in history][-4:] == ["awaiting-approval", "approved", "approved", "released"]
    by = [(one["role"], one.get("via")) for one in history[-1]["facts"]["approvals"]]
    assert by == [("operator", "Prefect's form"), ("reviewer", None)]
    assert live.json("run", "tiny")["version"] == waiting.version


def suspended(live: Live, name: str) -> Any:
    """The run in Prefect that asks about a candidate, once its process has ended."""
    query = {"flow_runs": {"tags": {"all_": ["approval", name]}, "state": {"type": {"any_": ["PAUSED"]}}}}
    wait_until(lambda: live.prefect("/flow_runs/filter", "POST", query), 240)
    (found,) = live.prefect("/flow_runs/filter", "POST", query)
    return found


def runs_named(live: Live, name: str) -> Any:
    """Flow runs of this name, newest first."""
    query = {"flow_runs": {"name": {"any_": [name]}}, "sort": "START_TIME_DESC"}
    return live.prefect("/flow_runs/filter", "POST", query)


def stage_states(live: Live) -> set[str]:
    """Names of the states of the steps in the newest release of `tiny`."""
    query = {"task_runs": {"flow_run_id": {"any_": [runs_named(live, "tiny")[0]["id"]]}}}
    return {run["state"]["name"] for run in live.prefect("/task_runs/filter", "POST", query)}


def wait_until(is_so: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.exhaustive  # as in tests/serving/gateway/test_changed_settings.py
def test_changed_settings_of_the_gateway_are_used_after_up(live: Live) -> None:
    live.serving("tiny")

    def send_4_kilobytes() -> int:
        return httpx.post(f"{live.gateway}/v1/models/tiny/predict", content=b"x" * 4096, headers=live.headers).status_code

    assert send_4_kilobytes() == 415
    live.run("up", environment={"HEADRACE_MAX_REQUEST_BYTES": "2048"})
    assert send_4_kilobytes() == 413
    live.run("up")
    assert send_4_kilobytes() == 415
