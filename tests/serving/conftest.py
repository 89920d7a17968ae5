"""A project in a temporary folder on free ports, whose processes all end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.settings import Settings
from tests.ports import lease
from tests.serving.replica_commands import echo_command


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
        assert supervisor.supervised_processes(found) == []


@pytest.fixture
def settings() -> Iterator[Settings]:
    with lease() as ports:
        yield Settings(
            gateway_port=ports[0],
            gateway_admin_port=ports[1],
            mlflow_port=ports[2],
            prefect_port=ports[3],
            drain_seconds=10.0,
            ready_seconds=20.0,
            access="open",
        )


@pytest.fixture
def runner(project: Project, settings: Settings) -> ProcessRunner:
    return ProcessRunner(project.using(settings), echo_command)
