"""Replicas as containers on a real engine."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.errors import EngineMissing, ServiceError, SettingsError
from headrace.permissions import make_private
from headrace.project import Project
from headrace.release.deploy import require_released_bytes
from headrace.release.journal import Entry
from headrace.runtime.usage import read_usage
from headrace.serving.access.tokens import issue, operator_token, prepare_tokens
from headrace.serving.local_http import Response, request, try_request
from headrace.serving.packaging import build_image, package
from headrace.serving.packaging.code_files import CODE
from headrace.serving.packaging.docker import Docker
from headrace.serving.replicas import environment
from headrace.serving.replicas.docker_runner import DockerRunner
from headrace.serving.replicas.replica import Replica, ReplicaSpec, Runner
from headrace.settings import Settings
from tests.asgi import make_project
from tests.other_user import as_other_user
from tests.redis_server import RedisServer
from tests.services import intruder
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


def predict(project: Project, replica: Replica, headers: dict[str, str]) -> Response:
    address = replica.address_in(project)
    return request(address, "/v1/models/halves/predict", method="POST", body=IMAGE, headers=headers, timeout_seconds=10)


def wait_ready(project: Project, replica: Replica, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while (answer := try_request(replica.address_in(project), "/readyz", timeout_seconds=2)) is None or answer.status != 200:
        assert time.monotonic() < end, "it is not ready"
        time.sleep(0.05)


INTERFACES = "print([line.split(':')[0].strip() for line in open('/proc/net/dev')][2:])"


def interfaces(runner: DockerRunner, replica: Replica) -> str:
    return runner.docker.run("exec", replica.id, "python", "-c", INTERFACES).strip()


def test_a_container_has_a_network_only_if_it_needs_one(
    runner: DockerRunner, spec: ReplicaSpec, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not runner.docker.has_bridge:
        pytest.skip("the engine has no network of its own")
    alone = runner.start(spec)
    wait_ready(project, alone)
    assert interfaces(runner, alone) == "['lo']"
    asked = DockerRunner(project.using(runner.settings.model_copy(update={"container_network": "bridge"}))).start(spec)
    assert "'eth0'" in interfaces(runner, asked) and asked.settings_digest != alone.settings_digest
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://172.17.0.1:4318")
    assert "'eth0'" in interfaces(runner, runner.start(spec))


def test_a_replica_answers_on_its_socket_and_is_listed_with_what_it_serves(
    runner: DockerRunner, spec: ReplicaSpec, project: Project, operator_headers: dict[str, str]
) -> None:
    typed: Runner = runner
    replica = typed.start(spec)
    wait_ready(project, replica)
    assert predict(project, replica, {}).status == 401
    assert predict(project, replica, operator_headers).json()["version"] == "3"
    (counted,) = read_usage(project.usage)
    assert (counted.tenant, counted.model, counted.rows) == ("operator", "halves", 1), (
        "usage is written where the host can read it"
    )
    (listed,) = runner.list("halves")
    assert (listed.spec, listed.address, listed.state, listed.runner) == (spec, replica.address, "running", "docker")
    assert listed.id == replica.id
    assert listed.settings_digest == replica.settings_digest == environment.settings_digest(runner.settings)
    assert abs(listed.started_at - time.time()) < 120
    assert "startup complete" in runner.logs(replica, 50)
    assert len(runner.logs(replica, 1).splitlines()) == 1


def test_a_replica_listens_on_its_socket_only_and_is_hardened(
    runner: DockerRunner, spec: ReplicaSpec, project: Project
) -> None:
    replica = runner.start(spec)
    wait_ready(project, replica)
    (record,) = runner.docker.inspect("container", replica.id)
    host = record["HostConfig"]
    assert not host["PortBindings"]
    tables = [Path(f"/proc/{record['State']['Pid']}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    listening = [line for table in tables for line in table.splitlines()[1:] if line.split()[3] == "0A"]
    assert not listening or not runner.docker.has_bridge, "nothing listens in the container's network"
    assert stat.S_IMODE(project.sockets.stat().st_mode) == 0o700
    make_private(project)
    wait_ready(project, replica, 5)  # the modes of its socket and the folder stay
    if os.getuid() == 0:
        assert as_other_user(lambda: intruder.opened_sockets([project.root / str(replica.address)])) == []
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == 1 << 30
    assert record["Config"]["User"] == "65532:65532"


def test_an_image_other_than_the_one_in_the_journal_is_not_served(
    docker_engine: Settings, spec: ReplicaSpec, project: Project
) -> None:
    (image,) = Docker.connect(docker_engine).inspect("image", spec.image or "")
    facts = {"runner": "docker", "bento": spec.bento_tag, "image": spec.image, "image_digest": image["Id"]}
    entry = Entry(at="now", event="released", model="halves", version="3", facts=facts, previous="")
    require_released_bytes(entry, project.using(docker_engine))
    facts["image_digest"] = f"sha256:{'0' * 64}"
    with pytest.raises(ServiceError, match=r"and sha256:000000000000… was released") as caught:
        require_released_bytes(entry.model_copy(update={"facts": facts}), project.using(docker_engine))
    assert f"docker image rm {spec.image}" in str(caught.value.hint)


def test_stopping_removes_it_and_stopping_again_does_nothing(runner: DockerRunner, spec: ReplicaSpec, project: Project) -> None:
    replica = runner.start(spec)
    wait_ready(project, replica)
    runner.stop(replica, 20)
    assert runner.list() == []
    runner.stop(replica, 20)
    assert not (project.sockets / replica.id).exists()


def test_stopping_lets_a_request_in_flight_end(
    runner: DockerRunner, spec: ReplicaSpec, project: Project, operator_headers: dict[str, str]
) -> None:
    replica = runner.start(spec)
    wait_ready(project, replica)
    body = b'{"pixels": [[255, 255, 255, 255], [255, 255, 255, 255], [0, 0, 0, 0], [0, 0, 0, 0]]}'
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(replica.address_in(project)))
        assert runner.has_connections(replica)
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
    runner: DockerRunner, spec: ReplicaSpec, project: Project, operator_headers: dict[str, str]
) -> None:
    replica = runner.start(spec)
    wait_ready(project, replica)
    (before,) = runner.docker.inspect("container", replica.id)
    subprocess.run(["kill", "-KILL", str(before["State"]["Pid"])], check=True)
    end = time.monotonic() + 30
    while time.monotonic() < end and runner.docker.inspect("container", replica.id)[0]["RestartCount"] == 0:
        time.sleep(0.1)
    wait_ready(project, replica)
    assert predict(project, replica, operator_headers).status == 200


def test_a_stuck_canary_is_restarted_unchanged(runner: DockerRunner, spec: ReplicaSpec, project: Project) -> None:
    canary = replace(spec, pool="canary")
    replica = runner.start(canary)
    wait_ready(project, replica)
    (before,) = runner.docker.inspect("container", replica.id)
    subprocess.run(["kill", "-STOP", str(before["State"]["Pid"])], check=True)
    runner.restart(replica, 1)
    wait_ready(project, replica)
    (listed,) = runner.list("halves")
    assert (listed.id, listed.spec, listed.address) == (replica.id, canary, replica.address)
    assert runner.docker.inspect("container", replica.id)[0]["State"]["Pid"] != before["State"]["Pid"]


def test_replicas_count_quotas_in_a_redis_that_they_reach(
    runner: DockerRunner, spec: ReplicaSpec, project: Project, docker_engine: Settings, tmp_path: Path
) -> None:
    (address,) = runner.docker.run("run", "--rm", "--entrypoint", "python3.11", spec.image or "", "-c", GATEWAY).split()
    server = RedisServer(tmp_path, address if runner.docker.has_bridge else "127.0.0.1").start()
    try:
        counting = DockerRunner(project.using(docker_engine.model_copy(update={"quota_store": server.address})))
        limited, _ = issue(project, "small", ["halves"], seconds=600, rows_per_day=2)
        replicas = [counting.start(spec) for _ in range(2)]
        for replica in replicas:
            wait_ready(project, replica)
        headers = {"authorization": f"Bearer {limited}"}
        assert [predict(project, replicas[i % 2], headers).status for i in range(4)] == [200, 200, 429, 429]
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
        runner.start(spec)
    assert "secret" not in str(caught.value)
    assert runner.list() == []


def test_other_projects_replicas_are_not_listed(
    runner: DockerRunner, spec: ReplicaSpec, docker_engine: Settings, tmp_path: Path
) -> None:
    runner.start(spec)
    assert DockerRunner(make_project(tmp_path / "other").using(docker_engine)).list() == []
    assert runner.list("trips") == []


def test_a_missing_image_is_an_error(runner: DockerRunner, spec: ReplicaSpec) -> None:
    missing = ReplicaSpec("halves", "3", spec.bento_tag, "headrace/halves:none", 1)
    with pytest.raises(ServiceError, match=r"headrace/halves:none is missing on this Docker engine"):
        runner.start(missing)
    assert runner.list() == []


def test_without_an_engine_there_is_no_runner(project: Project, tmp_path: Path) -> None:
    with pytest.raises(EngineMissing):
        DockerRunner(project.using(Settings(docker_host=f"unix://{tmp_path}/none.sock")))
