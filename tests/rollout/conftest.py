"""A project in a temporary folder on free ports, whose processes all end with the test."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.rollout import supervisor
from headrace.rollout.processes import Argv, ProcessRunner
from headrace.rollout.replicas import ReplicaSpec
from headrace.settings import Settings

ECHO = Path(__file__).parent / "echo_replica.py"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    root = tmp_path / "a [100%] clone"  # a name that globbing, expansion and splitting would each break on
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    found = Project(root)
    try:
        yield found
    finally:
        supervisor.shutdown(found, stop_seconds=5.0)
        assert supervisor.marked(found) == []


@pytest.fixture
def settings() -> Settings:
    door, admin, mlflow, prefect = free_ports(4)
    first = free_ports(1)[0]
    return Settings(door_port=door, door_admin_port=admin, mlflow_port=mlflow, prefect_port=prefect,
                    replica_ports=(first, min(first + 200, 65535)), drain_seconds=10.0, ready_seconds=20.0)


def echo_command(spec: ReplicaSpec, host: str, port: int) -> Argv:
    """The bento tag says how the echo server behaves: `never`, `crash`, `wrong`, or anything else for a good one."""
    version = "0" if spec.bento_tag == "wrong" else spec.version
    return [sys.executable, str(ECHO), spec.model, version, str(port), spec.bento_tag], {}


@pytest.fixture
def runner(project: Project) -> ProcessRunner:
    return ProcessRunner(project, echo_command)
