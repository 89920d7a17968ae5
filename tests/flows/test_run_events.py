"""How runs end is published once, on a real Prefect server: by the run, or by others after a kill. Automations answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.events import outbox
from headrace.events.running import dead_runs, folder
from headrace.project import Project
from headrace.release import journal
from headrace.services import prefect
from headrace.services.events import deliver
from headrace.services.events.dead_runs import publish_dead_runs, publish_ended_runs, publish_new_ended_runs
from headrace.services.events.receivers import PrefectServer
from tests.paths import ROOT
from tests.services.prefect_server import prefect_server

FLOW = """
import os, signal, sys, time
from prefect import flow
from flows.cancellation import supervised_run
from headrace.errors import DataError, ModelRefused

def body(how):
    with supervised_run():
        print("runs", flush=True)
        if how == "hangs":
            time.sleep(600)
        if how == "is killed later":
            return
        raise {"fails": DataError("no rows\\x1b[31m", hint="add some"), "refused": ModelRefused("too bad")}[how]

@flow(name="inner")
def inner(recipe_name: str):
    body(how)

@flow(name="outer")
def outer(recipe_name: str):
    with supervised_run():
        inner(recipe_name)
    if how == "is killed later":
        os.kill(os.getpid(), signal.SIGKILL)

how = sys.argv[1]
outer("tiny")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with prefect_server(tmp_path_factory.mktemp("clone")) as found:
        with outbox.opened(found) as connection:
            outbox.register(connection, [("test", "the test", ("failed", "crashed"))])
        yield found


def start(how: str, project: Project) -> subprocess.Popen[str]:
    environment = {**prefect.process_environment(project), "HEADRACE_PREFECT_PORT": str(project.settings.prefect_port)}
    command = [sys.executable, "-c", FLOW, how]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def published(project: Project) -> list[tuple[str, dict[str, Any]]]:
    """The events since the last call: name and data."""
    found: list[tuple[str, dict[str, Any]]] = []
    with outbox.opened(project) as connection:
        while True:
            state = next(one for one in outbox.receivers(connection) if one.key == "test")
            if (event := outbox.next_event(connection, state)) is None:
                return found
            assert event.model == "tiny"
            found.append((event.name, event.data))
            outbox.record_delivery(connection, state, event, 0.0)


def state_of(run: str, project: Project) -> str:
    return str(prefect.call(project, "GET", f"flow_runs/{run}")["state"]["type"])


def test_a_run_that_is_killed_is_published_and_closed_by_others(project: Project) -> None:
    since = datetime.now(UTC).isoformat()
    with start("hangs", project) as run:
        assert run.stdout is not None and run.stdout.readline() == "runs\n"
        assert dead_runs(project) == [] and len(list(folder(project).iterdir())) == 1
        os.kill(run.pid, signal.SIGKILL)
    partial = project.state / "anchors" / f".audit.json.{run.pid}.part"
    partial.parent.mkdir(exist_ok=True)
    partial.touch()
    deliver.look_for_dead_runs(project)
    publish_dead_runs(project)
    publish_ended_runs(project, since)
    ((name, data),) = published(project)
    assert name == "crashed" and data["run"] == "outer" and data["reason"].startswith("its process was killed")
    assert state_of(data["flow_run"], project) == "CRASHED"
    assert list(folder(project).iterdir()) == [] and not partial.exists()


def test_a_run_that_is_killed_before_prefect_knows_of_its_end_is_closed_as_it_ended(project: Project) -> None:
    with start("is killed later", project):
        pass
    (mark,) = folder(project).iterdir()
    assert state_of(mark.stem, project) == "RUNNING"
    publish_dead_runs(project)
    assert published(project) == [] and state_of(mark.stem, project) == "COMPLETED"
    assert list(folder(project).iterdir()) == []


def test_a_run_that_a_person_cancelled_has_not_crashed(project: Project) -> None:
    with start("hangs", project) as run:
        assert run.stdout is not None and run.stdout.readline() == "runs\n"
        run.send_signal(signal.SIGSTOP)
        (mark,) = folder(project).iterdir()
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
        prefect.call(project, "POST", f"flow_runs/{mark.stem}/set_state", body)
        os.kill(run.pid, signal.SIGKILL)
    publish_dead_runs(project)
    assert published(project) == [] and state_of(mark.stem, project) == "CANCELLED"


@pytest.mark.parametrize(("how", "wanted"), [("fails", 1), ("refused", 0)])
def test_an_error_is_published_once_and_a_refusal_is_none(how: str, wanted: int, project: Project) -> None:
    since = datetime.now(UTC).isoformat()
    with start(how, project) as run:
        _, errors = run.communicate(timeout=300)
    assert run.returncode != 0, errors
    later = publish_ended_runs(project, since)
    found = published(project)
    assert len(found) == wanted and later > since
    for name, data in found:
        assert name == "failed" and data["run"] == "outer" and data["hint"] == "add some"
        assert data["reason"] == "no rows\ufffd[31m"
    assert list(folder(project).iterdir()) == []


def test_a_run_whose_code_never_ran_is_found_in_prefect(project: Project) -> None:
    publish_new_ended_runs(project)
    flow = prefect.call(project, "POST", "flows/", {"name": "outer"})["id"]
    body = {"flow_id": flow, "name": "early", "parameters": {"recipe_name": "tiny"}}
    run = prefect.call(project, "POST", "flow_runs/", body)["id"]
    state = {"state": {"type": "CRASHED", "name": "Crashed", "message": "exited with status code -9"}, "force": True}
    prefect.call(project, "POST", f"flow_runs/{run}/set_state", state)
    publish_new_ended_runs(project)
    publish_new_ended_runs(project)
    ((name, data),) = published(project)
    assert name == "crashed" and data["run"] == "early" and data["reason"] == "exited with status code -9"


def test_the_documented_automation_starts_the_release_of_another_model(project: Project) -> None:
    flow = prefect.call(project, "POST", "flows/", {"name": "release"})["id"]
    body = {"name": "release", "flow_id": flow, "entrypoint": "flow.py:release", "work_pool_name": "headrace"}
    deployment = prefect.call(project, "POST", "deployments/", body)["id"]
    page = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(\{\n  \"name\".*?)```", page, re.DOTALL)
    prefect.call(project, "POST", "automations/", json.loads(example.replace("DEPLOYMENT_ID", deployment)))
    journal.record(project, "refused", "mnist", "1", {})
    journal.record(project, "released", "mnist", "2", {"by": "ops", "metrics": {"accuracy": 0.9}, "signature": "s3cret"})
    wanted = {"deployments": {"id": {"any_": [deployment]}}}
    deadline = time.monotonic() + 120
    while not (runs := prefect.call(project, "POST", "flow_runs/filter", wanted)) and time.monotonic() < deadline:
        deliver.Deliveries(project, [PrefectServer(project)]).run()  # again, since the automation may be loaded later
        time.sleep(1)
    (run,) = runs
    assert run["parameters"] == {"recipe_name": "mnist-mlp"}
    query = {"filter": {"event": {"name": ["headrace.released"]}, "resource": {"id": ["headrace.model.mnist"]}}}
    while not (found := prefect.call(project, "POST", "events/filter", query)["events"]) and time.monotonic() < deadline:
        time.sleep(1)  # it stores events in batches
    (event,) = found
    assert event["payload"] == {"version": "2", "by": "ops", "metrics": {"accuracy": 0.9}}
