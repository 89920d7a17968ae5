"""A whole small house: replicas of tiny models, a real Envoy before them, and the desk as a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headrace.client import Client
from headrace.project import Project
from headrace.serving.access import tokens
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.settings import Settings
from tests.asgi import wait_ready
from tests.conftest import ROOT
from tests.ports import lease


@dataclass
class House:
    """Where everything is, and the processes that a test may kill."""

    project: Project
    settings: Settings
    ports: dict[str, str]
    models: dict[str, Path]
    """To the folder of each one's graph and contract."""
    ports_of: dict[str, int] = field(default_factory=dict)
    """Of the models' replicas."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def desk(self) -> str:
        return f"http://127.0.0.1:{self.settings.api_port}"

    @property
    def door(self) -> str:
        return gateway.address(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.ports, "HEADRACE_ROOT": str(self.project.root), "PYTHONPATH": str(ROOT)}

    def token(self, tenant: str, *models: str, rows_per_day: int | None = None) -> str:
        return tokens.issue(self.project, tenant, models, 3600, rows_per_day=rows_per_day)[0]

    def client(self, tenant: str, *models: str, rows_per_day: int | None = None) -> Client:
        """A client with a token of its own."""
        return Client(self.door, self.token(tenant, *models, rows_per_day=rows_per_day), timeout=60)

    def start_desk(self, wait: bool = True) -> None:
        self._start("desk", [sys.executable, "-m", "headrace.services.api"])
        if wait:
            wait_ready(self.desk, 30, self.processes["desk"])

    def start_replica(self, model: Path, name: str, port: int) -> None:
        told = {"HEADRACE_USAGE": str(self.project.usage / name), "HEADRACE_QUOTAS": str(self.project.quotas)}
        if self.settings.access == "tokens":
            told["HEADRACE_TOKEN_KEYS"] = str(self.project.token_keys)
        self._start(name, [sys.executable, "-m", "tests.services.api.replica", str(model), str(port)], told)

    def stop(self, name: str) -> None:
        """As a power cut would: kill -9."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    def stop_all(self) -> None:
        """The desk in order: it ends what works on batches."""
        if desk := self.processes.pop("desk", None):
            desk.terminate()
            assert desk.wait(30) == 0
        for name in list(self.processes):
            self.stop(name)

    def _start(self, name: str, argv: list[str], variables: dict[str, str] | None = None) -> None:
        with (self.project.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv, cwd=self.project.root, env={**self.environment, **(variables or {})}, stdout=log, stderr=log
            )


@contextmanager
def open_house(root: Path, models: dict[str, Path], **settings: object) -> Iterator[House]:
    """`models`: name to the folder of its graph and contract; one replica each. Keywords are settings."""
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports, contextlib.ExitStack() as ending:
        named = {"gateway_port": ports[0], "gateway_admin_port": ports[1], "api_port": ports[2], **settings}
        variables = {f"HEADRACE_{name.upper()}": str(value) for name, value in named.items()}
        house = House(project, Settings(**named), variables, models)  # type: ignore[arg-type]
        ending.callback(supervisor.shutdown, project, 5.0)
        ending.callback(house.stop_all)
        tokens.prepare_tokens(project)
        for port, (model, folder) in zip(ports[10:], models.items(), strict=False):
            house.ports_of[model] = port
            house.start_replica(folder, f"{model}-v1-0001", port)
            endpoint = Replica(f"{model}-v1-0001", ReplicaSpec(model, "1", f"{model}:1"), "127.0.0.1", port)
            gateway.update_model(project, house.settings, model, [endpoint])
        envoy_process.start(project, house.settings)
        house.start_desk()
        for port, model in zip(ports[10:], models, strict=False):
            wait_ready(f"http://127.0.0.1:{port}", 30)
            admin.wait_until_healthy(house.settings, model, {("127.0.0.1", port)})
        yield house


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for what is bound to come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)
