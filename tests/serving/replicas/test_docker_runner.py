"""Replicas as containers on a real engine."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from headrace.errors import EngineMissing, PortTaken, ServiceError, SettingsError
from headrace.project import Project
from headrace.runtime.usage import read_usage
from headrace.serving.access.tokens import issue, operator_token, prepare_tokens
from headrace.serving.packaging import build_image, package
from headrace.serving.packaging.code_files import CODE
from headrace.serving.packaging.docker import Docker
from headrace.serving.replicas import environment
from headrace.serving.replicas.docker_runner import DockerRunner
from headrace.serving.replicas.replica import Replica, ReplicaSpec, Runner
from headrace.settings import Settings
from tests.asgi import make_project, wait_ready
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.tiny_models import image_model

IMAGE = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}


GATEWAY = """
import socket
rows = [line.split() for line in open("/proc/net/route")][1:]
print(next((socket.inet_ntoa(bytes.fromhex(row[2])[::-1]) for row in rows if row[1] == "00000000"), "none"))
"""
"""Prints the address by which containers reach this machine in their network."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = make_project(tmp_path_factory.mktemp("containers") / "project")
    prepare_tokens(made)
    return made


@pytest.fixture(scope="module")
def spec(docker_engine: Settings, project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSpec]:
    (project.root / "wheelhouse").symlink_to(CODE / "wheelhouse")
    bento = package(image_model(tmp_path_factory.mktemp("halves")), "halves", "3", {}, project)
    image = build_image(project.using(docker_engine), bento)
    yield ReplicaSpec("halves", "3", bento.tag, image.tag, threads=1)
    Docker.connect(docker_engine).run("image", "rm", "--force", image.tag)


@pytest.fixture
def runner(docker_engine: Settings, project: Project) -> Iterator[DockerRunner]:
    runner = DockerRunner(project.using(docker_engine))
    yield runner
    for replica in runner.list():
        runner.stop(replica, 0)


@pytest.fixture(scope="module")
def operator_headers(project: Project) -> dict[str, str]:
    """The operator's token: containers verify tokens as processes do."""
    return {"authorization": f"Bearer {operator_token(project)}"}


def predict(replica: Replica, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{replica.url}/v1/models/halves/predict", json=IMAGE, headers=headers, timeout=10)


def test_a_replica_answers_on_its_port_and_is_listed_with_what_it_serves(
    runner: DockerRunner, spec: ReplicaSpec, project: Project, operator_headers: dict[str, str]
) -> None:
    typed: Runner = runner
    port = free_port()
    replica = typed.start(spec, port)
    wait_ready(replica.url)
    assert predict(replica, {}).status_code == 401
    assert predict(replica, operator_headers).json()["version"] == "3"
    (counted,) = read_usage(project.usage)
    assert (counted.tenant, counted.model, counted.rows) == ("operator", "halves", 1), (
        "usage is written where the host can read it"
    )
    (listed,) = runner.list("halves")
    assert (listed.spec, listed.port, listed.state, listed.runner) == (spec, port, "running", "docker")
    assert listed.id == replica.id
    assert listed.settings_digest == replica.settings_digest == environment.settings_digest(runner.settings)
    assert abs(listed.started_at - time.time()) < 120
    assert "startup complete" in runner.logs(replica, 50)
    assert len(runner.logs(replica, 1).splitlines()) == 1


def test_a_replica_listens_on_loopback_only_and_is_hardened(runner: DockerRunner, spec: ReplicaSpec) -> None:
    replica = runner.start(spec, free_port())
    (record,) = runner.docker.inspect("container", replica.id)
    published = record["HostConfig"]["PortBindings"].values()
    assert all(binding["HostIp"] == "127.0.0.1" for bindings in published for binding in bindings)
    host = record["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == 1 << 30
    assert record["Config"]["User"] == "65532:65532"


def test_stopping_removes_it_and_stopping_again_does_nothing(
    runner: DockerRunner, spec: ReplicaSpec, operator_headers: dict[str, str]
) -> None:
    replica = runner.start(spec, free_port())
    wait_ready(replica.url)
    runner.stop(replica, 20)
    assert runner.list() == []
    runner.stop(replica, 20)
    with pytest.raises(httpx.TransportError):
        predict(replica, operator_headers)


def test_stopping_lets_a_request_in_flight_end(
    runner: DockerRunner, spec: ReplicaSpec, operator_headers: dict[str, str]
) -> None:
    replica = runner.start(spec, free_port())
    wait_ready(replica.url)
    body = b'{"pixels": [[255, 255, 255, 255], [255, 255, 255, 255], [0, 0, 0, 0], [0, 0, 0, 0]]}'
    with socket.create_connection(replica.address, timeout=20) as connection:
        head = (
            f"POST /v1/models/halves/predict HTTP/1.1\r\nhost: x\r\nauthorization: {operator_headers['authorization']}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}"
        )
        connection.sendall(f"{head}\r\n\r\n".encode() + body[:-1])
        time.sleep(0.3)
        stopping = subprocess.Popen(["docker", "stop", "--time", "20", replica.id], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        connection.sendall(body[-1:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert stopping.wait(20) == 0
    (stopped,) = runner.list()
    assert stopped.state == "stopped"


def test_the_engine_restarts_a_replica_that_was_killed(
    runner: DockerRunner, spec: ReplicaSpec, operator_headers: dict[str, str]
) -> None:
    replica = runner.start(spec, free_port())
    wait_ready(replica.url)
    (before,) = runner.docker.inspect("container", replica.id)
    subprocess.run(["kill", "-KILL", str(before["State"]["Pid"])], check=True)
    end = time.monotonic() + 30
    while time.monotonic() < end and runner.docker.inspect("container", replica.id)[0]["RestartCount"] == 0:
        time.sleep(0.1)
    wait_ready(replica.url)
    assert predict(replica, operator_headers).status_code == 200


def test_a_stuck_canary_is_restarted_unchanged(runner: DockerRunner, spec: ReplicaSpec) -> None:
    canary = replace(spec, pool="canary")
    replica = runner.start(canary, free_port())
    wait_ready(replica.url)
    (before,) = runner.docker.inspect("container", replica.id)
    subprocess.run(["kill", "-STOP", str(before["State"]["Pid"])], check=True)
    runner.restart(replica, 1)
    wait_ready(replica.url)
    (listed,) = runner.list("halves")
    assert (listed.id, listed.spec, listed.port) == (replica.id, canary, replica.port)
    assert runner.docker.inspect("container", replica.id)[0]["State"]["Pid"] != before["State"]["Pid"]


def test_replicas_count_quotas_in_a_redis_that_they_reach(
    runner: DockerRunner, spec: ReplicaSpec, project: Project, docker_engine: Settings, tmp_path: Path
) -> None:
    (address,) = runner.docker.run("run", "--rm", "--entrypoint", "python3.11", spec.image or "", "-c", GATEWAY).split()
    server = RedisServer(tmp_path, address if runner.docker.has_bridge else "127.0.0.1").start()
    try:
        counting = DockerRunner(project.using(docker_engine.model_copy(update={"quota_store": server.address})))
        limited, _ = issue(project, "small", ["halves"], seconds=600, rows_per_day=2)
        replicas = [counting.start(spec, free_port()) for _ in range(2)]
        for replica in replicas:
            wait_ready(replica.url)
        headers = {"authorization": f"Bearer {limited}"}
        assert [predict(replicas[i % 2], headers).status_code for i in range(4)] == [200, 200, 429, 429]
    finally:
        server.stop()


@pytest.mark.parametrize("store", ["redis://127.0.0.1:6379", "redis://:secret@localhost:6379/1", "unix:///run/redis.sock"])
def test_a_quota_store_that_containers_cannot_reach_is_an_error(
    spec: ReplicaSpec, project: Project, docker_engine: Settings, store: str
) -> None:
    runner = DockerRunner(project.using(docker_engine.model_copy(update={"quota_store": store})))
    if store.startswith("redis") and not runner.docker.has_bridge:
        pytest.skip("containers share this machine's network")
    with pytest.raises(SettingsError, match="quota_store") as caught:
        runner.start(spec, free_port())
    assert "secret" not in str(caught.value)
    assert runner.list() == []


def test_other_projects_replicas_are_not_listed(
    runner: DockerRunner, spec: ReplicaSpec, docker_engine: Settings, tmp_path: Path
) -> None:
    runner.start(spec, free_port())
    assert DockerRunner(make_project(tmp_path / "other").using(docker_engine)).list() == []
    assert runner.list("trips") == []


def test_a_port_in_use_is_an_error_and_leaves_no_container(runner: DockerRunner, spec: ReplicaSpec) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortTaken, match=str(taken.getsockname()[1])):
            runner.start(spec, taken.getsockname()[1])
    assert runner.list() == []


def test_a_missing_image_is_an_error(runner: DockerRunner, spec: ReplicaSpec) -> None:
    missing = ReplicaSpec("halves", "3", spec.bento_tag, "headrace/halves:none", 1)
    with pytest.raises(ServiceError, match=r"headrace/halves:none is missing on this Docker engine"):
        runner.start(missing, free_port())
    assert runner.list() == []


def test_without_an_engine_there_is_no_runner(project: Project, tmp_path: Path) -> None:
    with pytest.raises(EngineMissing):
        DockerRunner(project.using(Settings(docker_host=f"unix://{tmp_path}/none.sock")))
