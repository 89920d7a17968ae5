"""A project in a temporary folder on free ports, whose processes all end with the test."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.rollout import supervisor
from headrace.rollout.processes import ProcessRunner
from headrace.settings import Settings
from tests.rollout.support import echo_command, free_ports


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
    first = random.randrange(20_000, 32_000, 200)  # below the ports that outgoing connections take
    return Settings(
        door_port=door,
        door_admin_port=admin,
        mlflow_port=mlflow,
        prefect_port=prefect,
        replica_ports=(first, first + 199),
        drain_seconds=10.0,
        ready_seconds=20.0,
    )


@pytest.fixture
def runner(project: Project) -> ProcessRunner:
    return ProcessRunner(project, echo_command)
