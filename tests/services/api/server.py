"""A small service: replicas of tiny models behind a real Envoy, and the API server as a process."""

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

import httpx

from headrace.client import Client
from headrace.project import Project
from headrace.serving.access import tokens
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.settings import Settings
from tests.asgi import wait_ready
from tests.paths import ROOT
from tests.ports import lease


@dataclass
class LocalService:
    """Addresses and folders of the service, and its processes, which a test may kill."""

    project: Project
    settings: Settings
    ports: dict[str, str]
    models: dict[str, Path]
    """Name to the folder of the graph and the contract."""
    sockets: dict[str, Path] = field(default_factory=dict)
    """Model to the socket of its replica, relative to the project."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def direct(self) -> httpx.Client:
        """A client of the API server that goes around the gateway."""
        transport = httpx.HTTPTransport(uds=str(self.project.api_socket))
        return httpx.Client(base_url="http://api-server", transport=transport, timeout=60)

    @property
    def gateway(self) -> str:
        return gateway.address(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.ports, "HEADRACE_ROOT": str(self.project.root), "PYTHONPATH": str(ROOT)}

    def token(self, tenant: str, *models: str, rows_per_day: int | None = None) -> str:
        return tokens.issue(self.project, tenant, models, 3600, rows_per_day=rows_per_day)[0]

    def client(self, tenant: str, *models: str, rows_per_day: int | None = None) -> Client:
        """A client with its own token."""
        return Client(self.gateway, self.token(tenant, *models, rows_per_day=rows_per_day), timeout=60)

    def start_api_server(self, wait: bool = True) -> None:
        self._start("api-server", [sys.executable, "-m", "headrace.services.api"])
        if wait:
            with self.direct() as client:
                wait_ready("", 30, self.processes["api-server"], client)

    def start_replica(self, model: Path, name: str, path: Path) -> None:
        variables = {"HEADRACE_USAGE": str(self.project.usage / name), "HEADRACE_QUOTAS": str(self.project.quotas)}
        if self.settings.access == "tokens":
            variables["HEADRACE_TOKEN_KEYS"] = str(self.project.token_keys)
        self._start(name, [sys.executable, "-m", "tests.services.api.replica", str(model), str(path)], variables)

    def stop(self, name: str) -> None:
        """Kills it with SIGKILL."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    def stop_all(self) -> None:
        """Stops the API server gracefully, which ends the processes of batches, and kills the rest."""
        if server := self.processes.pop("api-server", None):
            server.terminate()
            assert server.wait(30) == 0
        for name in list(self.processes):
            self.stop(name)

    def _start(self, name: str, argv: list[str], variables: dict[str, str] | None = None) -> None:
        with (self.project.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv, cwd=self.project.root, env={**self.environment, **(variables or {})}, stdout=log, stderr=log
            )


@contextmanager
def start_service(root: Path, models: dict[str, Path], **settings: object) -> Iterator[LocalService]:
    """`models`: name to the folder of its graph and contract; one replica each. Keywords are settings."""
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports, contextlib.ExitStack() as ending:
        named = {"gateway_port": ports[0], "gateway_admin_port": ports[1], **settings}
        variables = {f"HEADRACE_{name.upper()}": str(value) for name, value in named.items()}
        service = LocalService(project, Settings(**named), variables, models)  # type: ignore[arg-type]
        ending.callback(supervisor.shutdown, project, 5.0)
        ending.callback(service.stop_all)
        tokens.prepare_tokens(project)
        for model, folder in models.items():
            name = f"{model}-v1-0001"
            service.sockets[model] = (project.sockets / f"{name}.sock").relative_to(root)
            service.start_replica(folder, name, service.sockets[model])
            endpoint = Replica(name, ReplicaSpec(model, "1", f"{model}:1"), service.sockets[model])
            gateway.update_model(project.using(service.settings), model, [endpoint])
        envoy_process.start(project.using(service.settings))
        service.start_api_server()
        for model, path in service.sockets.items():
            admin.wait_until_healthy(service.project, model, {path}, 30)
        yield service


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until the condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)
