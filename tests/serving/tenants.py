"""A project whose champion serves under a real Envoy: what a module's tests roll out beside it, and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.project import Project
from headrace.recipe.rollout import RolloutConfig
from headrace.serving.gateway import gateway
from headrace.serving.gateway.clusters import Traffic
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.ports import lease
from tests.serving.load import Load
from tests.serving.support import moody_command

CHAMPION = ReplicaSpec("digits", "1", "good")


class House:
    """A project whose champion serves, and what rolls others out beside it."""

    def __init__(self, project: Project, settings: Settings) -> None:
        self.project, self.settings = project, settings
        self.runner = ProcessRunner(project, moody_command, settings)
        self.said: list[str] = []
        self.noted: list[dict[str, Any]] = []

    def roll_out(self, spec: ReplicaSpec, replicas: int = 2, settled: bool = True, **how: Any) -> rolling.Rollout:
        self.said.clear()
        self.noted.clear()
        return rolling.roll_out(
            spec,
            replicas,
            self.project,
            self.settings,
            self.runner,
            self.said.append,
            RolloutConfig.model_validate(how),
            self.noted.append,
            settled,
        )

    def load(self) -> Load:
        return Load(self.settings.gateway_port, "digits", fast=4, slow=0, fresh=1)

    def serves(self, version: str, replicas: int = 2) -> None:
        """Just so many replicas of this version serve, and nothing else is left of any other."""
        assert rolling.is_serving(ReplicaSpec("digits", version, "good"), replicas, self.project, self.settings)
        assert gateway.traffic(self.project, "digits") == Traffic()
        assert {(r.version, r.state) for r in self.runner.list()} <= {(version, "running"), (version, "starting")}
        assert len(self.runner.list()) == replicas


@contextmanager
def open_house(root: Path) -> Iterator[House]:
    """Its processes end with the block."""
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports:
        settings = Settings(
            gateway_port=ports[0],
            gateway_admin_port=ports[1],
            api_port=ports[2],
            replica_ports=(ports[3], ports[-1]),
            drain_seconds=10.0,
            ready_seconds=20.0,
            access="open",
        )
        try:
            yield House(project, settings)
        finally:
            supervisor.shutdown(project, stop_seconds=5.0)
            assert supervisor.marked(project) == []
