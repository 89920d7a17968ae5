"""What goes wrong in the night: each fault ends in a clear error, and the same command again completes the work.

`tests/kills` kills flows, services and the machine at every step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from headrace.services import prefect, up
from tests.exhaustive import exhaustive
from tests.ports import taken
from tests.projects import make_project, table
from tests.release.live import SECONDS, Live, another_recipe, kill_group, steps_until


def stages_of(live: Live) -> list[psutil.Process]:
    """Stage processes of this project that are alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "headrace.pipeline.stages" in " ".join(process.cmdline()) and process.cwd() == str(live.project.root):
                found.append(process)
    return found


def run_until(live: Live, name: str, step: str) -> None:
    """Releases up to the beginning of `step`, by when the steps before it are done; the rest is not done."""
    process = live.start("run", name)
    assert steps_until(process, step)[-1] == step
    kill_group(process)


@pytest.mark.exhaustive
def test_a_killed_release_leaves_no_stage_running(live: Live) -> None:
    name = another_recipe(live, "orphan", train={"epochs": 100000, "learning_rate": 0.001})
    process = live.start("run", name)
    assert steps_until(process, "train")[-1] == "train"
    deadline = time.monotonic() + 60
    while not stages_of(live) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stages_of(live)
    os.kill(process.pid, signal.SIGKILL)  # the flow alone: its stage is another process
    process.wait(30)
    while stages_of(live) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not stages_of(live)
    kill_group(process)


@pytest.mark.exhaustive  # tests/training/test_run.py kills the training alone
def test_a_killed_training_ends_with_the_weights_of_one_never_killed(live: Live) -> None:
    fields: dict[str, object] = {"epochs": 400, "learning_rate": 0.001, "schedule": "one_cycle"}
    whole, cut = another_recipe(live, "whole", train=fields), another_recipe(live, "cut", train=fields)
    (live.project.root / "cut.csv").write_bytes((live.project.root / "whole.csv").read_bytes())
    run_until(live, whole, "export")
    checkpoint = live.project.state / "checkpoints" / f"{cut}.pt"
    process = live.start("run", cut)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    kill_group(process)
    assert checkpoint.exists(), "the training was over before it could be killed"
    run_until(live, cut, "export")
    weights = [(live.project.artifacts(name) / "train" / "model.pt").read_bytes() for name in (whole, cut)]
    assert weights[0] == weights[1]


def test_ctrl_c_prints_how_to_continue(live: Live) -> None:
    name = another_recipe(live, "stopped", train={"epochs": 100000, "learning_rate": 0.001})
    process = live.start("run", name)
    steps_until(process, "train")
    deadline = time.monotonic() + 60
    while not (live.project.state / "checkpoints" / f"{name}.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said and "hint" in said and "Traceback" not in said


def test_a_run_cancelled_in_prefect_ends_and_the_next_one_continues(live: Live) -> None:
    name = another_recipe(live, "cancelled", train={"epochs": 100000, "learning_rate": 0.001})
    process = live.start("run", name)
    assert steps_until(process, "train")[-1] == "train"
    checkpoint = live.project.state / "checkpoints" / f"{name}.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    project = live.project.using(live.settings)
    (run,) = prefect.call(project, "POST", "flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
    prefect.call(project, "POST", f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "cancelled in Prefect" in said and f"headrace run {name}" in said and "Traceback" not in said
    assert prefect.call(project, "GET", f"flow_runs/{run['id']}")["state"]["type"] == "CANCELLED"
    assert not stages_of(live) and checkpoint.exists()
    assert statuses_in_mlflow(live, name) == ["KILLED"]

    again = live.start("run", name)
    assert steps_until(again, "train")[-1] == "train"
    while statuses_in_mlflow(live, name) != ["RUNNING"] and time.monotonic() < deadline:  # the same run, not another one
        time.sleep(0.2)
    kill_group(again)
    assert statuses_in_mlflow(live, name) == ["RUNNING"]


def statuses_in_mlflow(live: Live, name: str) -> list[str]:
    """The states of all training runs of a recipe."""
    with contextlib.closing(sqlite3.connect(live.project.mlflow_database)) as database:
        query = "select r.status from runs r join experiments e using (experiment_id) where e.name = ?"
        return [str(status) for (status,) in database.execute(query, (name,))]


@pytest.mark.exhaustive  # tests/release/test_lock.py tests the lock alone
def test_two_releases_of_one_recipe_exclude_each_other(live: Live) -> None:
    first = live.start("run", "tiny", "--force")
    steps_until(first, "validate")
    os.killpg(first.pid, signal.SIGSTOP)  # it could end before the second one looks
    error = live.json("run", "tiny", "--force", code=6)
    os.killpg(first.pid, signal.SIGCONT)
    assert "is being released by process" in error["message"]
    assert first.wait(SECONDS) == 0


@pytest.mark.exhaustive  # tests/kills kills it during a flow
def test_a_killed_prefect_server_is_restarted(live: Live) -> None:
    server = next(p for p in psutil.process_iter(["pid"]) if _listens(p, int(live.ports["HEADRACE_PREFECT_PORT"])))
    server.kill()
    released = live.json("run", "tiny", "--force")
    assert not released["unchanged"] and released["version"] == live.serving("tiny")


def _listens(process: psutil.Process, port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("inet"))
    return False


@pytest.mark.exhaustive  # tests/tracking/test_registry.py locks it without a release
def test_a_locked_registry_is_reported_and_the_next_run_registers_the_model(live: Live) -> None:
    name = another_recipe(live, "locked")
    with contextlib.closing(sqlite3.connect(live.project.mlflow_database, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        error = live.json("run", name, code=5)
        assert "locked" in error["message"] and error["hint"]
        holder.execute("ROLLBACK")
    run_until(live, name, "package")
    assert live.json("trace", f"{name}@1")["version"] == "1"


def test_a_bad_source_stops_the_flow_before_training(live: Live) -> None:
    name = another_recipe(live, "spoilt")
    bad = table(100, seed=5)
    bad.loc[3, "kind"] = None
    bad.to_csv(live.project.root / "spoilt.csv", index=False)
    error = live.json("run", name, code=3)
    assert "kind" in error["message"]
    assert not (live.project.artifacts(name) / "train").exists()
    shown = live.prefect(f"/artifacts/validation-{name}/latest")
    assert "expect_column_values_to_not_be_null" in shown["data"], "Prefect's UI shows the rows at fault"
    assert name not in {m["name"] for m in live.json("status")["models"]}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        exhaustive(lambda path: path.unlink(), "no such file"),
        exhaustive(lambda path: path.write_text("length,width,colour,kind\n"), "row"),
        (lambda path: path.write_text(path.read_text()[:2000].rsplit(",", 1)[0]), "truncated"),
        exhaustive(lambda path: path.write_text(path.read_text().replace("kind", "knd", 1)), "kind"),
    ],
    ids=["missing file", "empty", "cut in the middle", "column gone"],
)
def test_a_broken_file_is_named(live: Live, spoil: object, said: str, request: pytest.FixtureRequest) -> None:
    name = another_recipe(live, "b" + str(abs(hash(request.node.name)) % 10**6))
    spoil(live.project.root / f"{name}.csv")  # type: ignore[operator]
    error = live.json("run", name, code=3)
    assert said in error["message"].lower(), error
    assert error["hint"]
    (live.project.recipes / f"{name}.yaml").unlink()


def test_a_changed_sha256_is_refused(live: Live) -> None:
    name = another_recipe(live, "changed")
    path = live.project.recipes / f"{name}.yaml"
    path.write_text(path.read_text().replace("source: changed.csv", f"source: changed.csv\n  sha256: '{'0' * 64}'"))
    error = live.json("run", name, code=3)
    assert "sha256" in error["message"] and "0" * 64 in error["message"]


def test_a_taken_port_names_its_holder_and_the_setting(
    tmp_path: Path, free_ports: Callable[[], dict[str, str]], request: pytest.FixtureRequest
) -> None:
    fresh = Live(make_project(tmp_path / "clone"), free_ports())  # where nothing runs yet
    request.addfinalizer(lambda: up.down(fresh.project.using(fresh.settings)))
    port = fresh.ports["HEADRACE_GATEWAY_PORT"]
    with taken(int(port)):
        error = fresh.json("up", code=5)
    assert error["error"] == "PortTaken" and port in error["message"] and f"pid {os.getpid()}" in error["message"]
    assert "gateway_port" in f"{error['hint']}{error['message']}".lower()
    assert {service["state"] for service in fresh.json("status")["services"]} == {"stopped"}


def test_a_missing_docker_engine_is_reported_with_a_hint(live: Live) -> None:
    error = live.json(
        "run", "tiny", "--runner", "docker", "--force", code=5, environment={"HEADRACE_DOCKER_HOST": "unix:///nowhere.sock"}
    )
    assert error["error"] == "EngineMissing" and "docker" in error["hint"].lower()
    assert live.json("predict", "tiny", "--sample")["model"] == "tiny"


def test_an_unknown_command_or_recipe_ends_with_2(live: Live) -> None:
    assert "did you mean 'tiny'" in live.json("run", "tinny", code=2)["message"]
    assert (
        subprocess.run(["headrace", "rum", "tiny"], cwd=live.project.root, env=live.environment, capture_output=True).returncode
        == 2
    )


@pytest.mark.exhaustive  # as in tests/pipeline/test_dvc.py and tests/data/test_crashes.py
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of its own")
def test_a_full_disk_is_reported_and_the_next_run_goes_on(live: Live) -> None:
    name = another_recipe(live, "full")
    place = live.project.artifacts(name)
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], check=True)
    try:
        error = live.json("run", name, code=7)
        assert "space" in error["message"] and error["hint"]
    finally:
        subprocess.run(["umount", place], check=True)
    run_until(live, name, "export")
