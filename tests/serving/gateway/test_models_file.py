"""`models.json`, the record of what serves: damaged, or in the folder of an earlier Headrace."""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.errors import DamagedFile
from headrace.files import read_json, write_json
from headrace.project import Project
from headrace.services import probes, up
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.gateway.models_file import adopt_old_folder
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.ports import is_free
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.other_user import as_other_user
from tests.ports import free_port
from tests.services import intruder
from tests.serving.load import Load
from tests.serving.replica_commands import echo_command

V1, V2 = ReplicaSpec("digits", "1", "good"), ReplicaSpec("digits", "2", "good")


def status(settings: Settings) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=20)
    connection.request("GET", "/v1/models/digits")
    found = connection.getresponse().status
    connection.close()
    return found


def roll_out(spec: ReplicaSpec, project: Project, runner: ProcessRunner) -> None:
    rolling.roll_out(spec, 1, project, runner, lambda line: None)


def test_a_damaged_record_is_an_error_that_stops_and_forgets_nothing(
    project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    roll_out(V1, project.using(settings), runner)
    path = project.gateway / "models.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    files = {file: file.read_bytes() for file in project.gateway.rglob("*.json")}
    attempts: list[Callable[[], object]] = [
        lambda: gateway.read_routes(project),
        lambda: gateway.update_model(project.using(settings), "flights", []),
        lambda: gateway.finalize(project.using(settings), "digits"),
        lambda: gateway.reload_tokens(project.using(settings)),
        lambda: envoy_process.start(project.using(settings)),
        lambda: roll_out(V2, project.using(settings), runner),
        lambda: rolling.remove("digits", project.using(settings), runner, lambda line: None),
        lambda: up.down(project.using(settings)),
        lambda: list(probes.replicas(project)),
    ]
    for attempt in attempts:
        with pytest.raises(DamagedFile, match="not valid JSON") as damaged:
            attempt()
        assert damaged.value.where == str(path)
        assert "headrace up" in (damaged.value.hint or "")
    assert {file: file.read_bytes() for file in project.gateway.rglob("*.json")} == files
    (replica,) = runner.list()
    assert replica.version == "1" and replica.state in ("starting", "running")
    assert status(settings) == 200, "Envoy keeps serving from its own files"

    path.write_bytes(whole)
    assert rolling.is_serving(V1, 1, project.using(settings))


def test_a_damaged_cache_of_the_gateway_is_written_again(project: Project, settings: Settings) -> None:
    envoy_process.start(project.using(settings))
    for name in ("settings.json", "cds.json", "rds.json"):
        (project.gateway / name).write_text("{")
    assert not gateway.runs_with_settings(project.using(settings)), "`up` starts it again"
    envoy_process.start(project.using(settings))
    assert gateway.runs_with_settings(project.using(settings))
    assert [cluster["name"] for cluster in read_json(project.gateway / "cds.json")["resources"]] == ["~api", "~admin"]


def test_replicas_that_an_earlier_version_started_on_ports_are_replaced_without_a_lost_request(
    project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    """As that version recorded them: with host and port, and no version of the schema."""
    port, name = free_port(), "digits-v1-aaaa"
    argv, variables = echo_command(V1, Path(str(port)))
    record = {"id": name, "host": "127.0.0.1", "port": port, "runner": "process", "model": "digits", "version": "1"}
    record |= {"bento_tag": "good", "image": None, "threads": 1, "pool": "main", "settings_digest": "before", "started_at": 0.0}
    write_json(project.state / "replicas" / f"{name}.json", record)
    write_json(project.gateway / "models.json", {"digits": {"endpoints": [record], "canary": 0.0, "shadow": 0.0}})
    supervisor.add(project, supervisor.Program(name, argv, variables))
    envoy_process.start(project.using(settings))
    admin.wait_until_healthy(project, "digits", {("127.0.0.1", port)})
    with Load(settings.gateway_port, "digits", slow=0) as load:
        load.wait_for("1", 50)
        assert [replica.address for replica in runner.list()] == [("127.0.0.1", port)]
        roll_out(V1, project.using(settings), runner)
        load.wait_for("1", 50)
    assert load.failures == []
    (replica,) = runner.list()
    assert replica.id != name and replica.address == Path(f".headrace/sockets/{replica.id}.sock")
    assert read_json(project.gateway / "models.json", newest=2)["schema_version"] == 2
    assert is_free(port)
    assert set(intruder.listening_ports(project).values()) == {"envoy"}, "replicas listen on no port"
    if os.getuid() == 0:
        assert as_other_user(lambda: intruder.opened_sockets(intruder.unix_sockets(project))) == []


@pytest.fixture
def old_project(
    project: Project, settings: Settings, runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Project:
    """A project that serves as a Headrace started it that called the folder `.headrace/door`."""
    with monkeypatch.context() as earlier:
        earlier.setattr(Project, "gateway", property(lambda self: self.state / "door"))
        roll_out(V1, project.using(settings), runner)
    folder = project.state / "door"
    (folder / "settings.json").unlink()
    write_json(folder / "opened.json", {"door_port": settings.gateway_port, "access": "open", "tls": "off"})
    (model, stored), _ = sorted(read_json(folder / "models.json", newest=2).items())
    (replica,) = stored["endpoints"]
    old = {name: value for name, value in replica.items() if name not in ("id", "model", "settings_digest", "runner")}
    old |= {"replica": replica["id"], "runner": "processes"}
    write_json(folder / "models.json", {model: {**stored, "endpoints": [old], "predecessors": [{**old, "version": "0"}]}})
    return project


def test_a_project_from_before_the_rename_keeps_what_it_serves(
    old_project: Project, settings: Settings, runner: ProcessRunner
) -> None:
    (replica,) = runner.list()
    assert gateway.endpoints_by_model(old_project) == {"digits": [replica]}
    assert [previous.version for previous in gateway.previous_replicas(old_project, "digits")] == ["0"]
    assert not envoy_process.is_ready(old_project.using(settings)), "its administration is not where this version asks it"
    assert supervisor.has_changed(old_project, envoy_process.program(old_project.using(settings))), "`up` restarts it"
    gateway.reload_tokens(old_project.using(settings))
    assert not old_project.gateway.exists(), "until `up`, Envoy reads the old folder"

    envoy_process.start(old_project.using(settings))
    assert not (old_project.state / "door").exists()
    assert gateway.endpoints_by_model(old_project) == {"digits": [replica]}
    assert [previous.version for previous in gateway.previous_replicas(old_project, "digits")] == ["0"]
    assert gateway.runs_with_settings(old_project.using(settings))
    assert not supervisor.has_changed(old_project, envoy_process.program(old_project.using(settings)))
    assert not any("door" in file.read_text() for file in old_project.gateway.rglob("*.json"))
    assert status(settings) == 200
    assert [again.pid for again in runner.list()] == [replica.pid], "the replica was not restarted"


def test_after_a_kill_during_the_move_the_next_start_completes_it(old_project: Project, settings: Settings) -> None:
    adopt_old_folder(old_project)
    envoy_process.start(old_project.using(settings))
    assert not any("door" in file.read_text() for file in old_project.gateway.rglob("*.json"))
    assert status(settings) == 200
