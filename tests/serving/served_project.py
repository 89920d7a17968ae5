"""A project with a served champion behind a real Envoy, for tests that roll out other versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.project import Project
from headrace.recipe.serve import RolloutConfig
from headrace.serving.gateway import gateway
from headrace.serving.gateway.model_route import Traffic
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.ports import lease
from tests.serving.load import Load
from tests.serving.replica_commands import misbehaving_command

CHAMPION = ReplicaSpec("digits", "1", "good")


class ServedProject:
    """A project with a served champion; rolls out other versions and records their reports."""

    def __init__(self, project: Project, settings: Settings) -> None:
        self.project, self.settings = project, settings
        self.runner = ProcessRunner(project.using(settings), misbehaving_command)
        self.reports: list[str] = []
        self.recorded: list[dict[str, Any]] = []

    def roll_out(self, spec: ReplicaSpec, replicas: int = 2, is_final: bool = True, **config: Any) -> rolling.Rollout:
        """Rolls out a version. `config` is the section `rollout`; by default a busy machine is not a reason to roll back."""
        self.reports.clear()
        self.recorded.clear()
        return rolling.roll_out(
            spec,
            replicas,
            self.project.using(self.settings),
            self.runner,
            self.reports.append,
            RolloutConfig.model_validate({"bounds": {"latency": 50}} | config),
            self.recorded.append,
            is_final,
        )

    def load(self) -> Load:
        return Load(self.settings.gateway_port, "digits", fast=4, slow=0, fresh=1)

    def assert_serves(self, version: str, replicas: int = 2) -> None:
        """Exactly this many replicas of this version serve, and no replica of another version is left."""
        assert rolling.is_serving(ReplicaSpec("digits", version, "good"), replicas, self.project.using(self.settings))
        assert gateway.traffic(self.project, "digits") == Traffic()
        assert {(r.version, r.state) for r in self.runner.list()} <= {(version, "running"), (version, "starting")}
        assert len(self.runner.list()) == replicas


@contextmanager
def open_served_project(root: Path) -> Iterator[ServedProject]:
    """Stops its processes at the end of the block."""
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports:
        settings = Settings(
            gateway_port=ports[0],
            gateway_admin_port=ports[1],
            drain_seconds=10.0,
            ready_seconds=20.0,
            access="open",
        )
        try:
            yield ServedProject(project, settings)
        finally:
            supervisor.shutdown(project, stop_seconds=5.0)
            assert supervisor.supervised_processes(project) == []
