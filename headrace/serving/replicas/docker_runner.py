"""Runs replicas as hardened Docker containers with one port on loopback. The engine's records are the only state."""

from __future__ import annotations

import builtins
import math
import re
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlsplit

from headrace.errors import PortTaken, ServiceError, SettingsError
from headrace.project import Project
from headrace.serving.packaging.docker import Docker
from headrace.serving.replicas import environment
from headrace.serving.replicas.ports import is_free
from headrace.serving.replicas.replica import Pool, Replica, ReplicaSpec, RunnerName, State, new_id
from headrace.settings import Settings, is_loopback

LOOPBACK = "127.0.0.1"
PORT_IN_CONTAINER = 3000
HARDENED = (
    "--read-only",
    "--tmpfs",
    "/tmp:rw,noexec,nosuid,size=64m",  # noqa: S108 (a path inside the container)
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--memory",
    "1g",
    "--pids-limit",
    "256",
)
"""Read-only except for /tmp, without privileges, limited in memory and processes."""
LIFE = ("--restart", "unless-stopped", "--log-driver", "local", "--log-opt", "max-size=5m", "--log-opt", "max-file=2")
"""The engine is the supervisor: it restarts a container that has ended, also after a reboot."""
STATES: dict[str, State] = {
    "created": "starting",
    "running": "running",
    "paused": "running",
    "restarting": "failed",
    "removing": "stopping",
    "exited": "stopped",
    "dead": "failed",
}


class DockerRunner:
    """Runs the replicas of one project on one Docker engine (see `replica.Runner`)."""

    name: RunnerName = "docker"

    def __init__(self, project: Project) -> None:
        """
        Raises:
            EngineMissing: no Docker engine answers.
        """
        self.project = project
        self.settings = project.settings
        self.docker = Docker.connect(project.settings)

    def start(self, spec: ReplicaSpec, port: int) -> Replica:
        """Starts a container of `spec.image` that listens on 127.0.0.1:`port`, and returns before it is ready.

        Raises:
            ServiceError: the spec has no image, the image is missing, or the engine refuses.
            PortTaken: something else listens on the port.
            SettingsError: as `require_quota_store`.
        """
        require_quota_store(self.docker, self.settings)
        if spec.image is None:
            raise ServiceError(
                f"{spec.bento_tag} has no image", where=spec.model, hint=f"headrace run {spec.model}   (it builds one)"
            )
        if not is_free(port, LOOPBACK):  # with the host's network the engine would not notice
            raise _port_taken(spec, port)
        name = new_id(spec)
        try:
            self.docker.run(
                "run",
                "--detach",
                "--name",
                name,
                "--pull",
                "never",
                *HARDENED,
                *LIFE,
                *self._labels(spec, port),
                *environment.container_arguments(spec, name, self.project),
                *self._address(spec.image, port),
                environment=environment.docker_client_variables(self.settings),
            )
        except ServiceError as error:
            self._remove(name)  # a container that failed to start is kept by the engine
            raise self._explained(error, spec, port) from None
        (replica,) = self._read([name])
        return replica

    def stop(self, replica: Replica, drain_seconds: float) -> None:
        """Stops a container (SIGTERM, then SIGKILL after `drain_seconds`) and removes it. Does nothing if it is gone."""
        if self.docker.inspect("container", replica.id):
            grace = math.ceil(drain_seconds)
            try:
                self.docker.run("stop", "--time", str(grace), replica.id, seconds=grace + 60)
            except ServiceError:
                if self.docker.inspect("container", replica.id):
                    raise
            self._remove(replica.id)

    def restart(self, replica: Replica, stop_seconds: float) -> None:
        grace = math.ceil(stop_seconds)
        self.docker.run("restart", "--time", str(grace), replica.id, seconds=grace + 60)

    def list(self, model: str | None = None) -> builtins.list[Replica]:
        """Every container of this project, running or not, oldest first."""
        filters = [f"label=headrace.project={self._project_label}"]
        if model is not None:
            filters.append(f"label=headrace.model={model}")
        arguments = [part for one in filters for part in ("--filter", one)]
        return self._read(self.docker.run("ps", "--all", "--no-trunc", "--format", "{{.ID}}", *arguments).split())

    def logs(self, replica: Replica, lines: int) -> str:
        return self.docker.logs(replica.id, lines)

    @property
    def _project_label(self) -> str:
        return self.project.runtime_dir.name

    def _labels(self, spec: ReplicaSpec, port: int) -> builtins.list[str]:
        values = {
            "project": self._project_label,
            "model": spec.model,
            "version": spec.version,
            "bento": spec.bento_tag,
            "threads": spec.threads,
            "port": port,
            "pool": spec.pool,
            "settings": environment.settings_digest(self.settings),
        }
        return [part for name, value in values.items() for part in ("--label", f"headrace.{name}={value}")]

    def _address(self, image: str, port: int) -> builtins.list[str]:
        """Network, image and arguments of the server. Without a bridge network, the container uses the host's network."""
        if self.docker.has_bridge:
            return ["--publish", f"{LOOPBACK}:{port}:{PORT_IN_CONTAINER}", image]
        return ["--network", "host", image, "--host", LOOPBACK, "--port", str(port)]

    def _remove(self, name: str) -> None:
        if self.docker.inspect("container", name):
            self.docker.run("rm", "--force", "--volumes", name)

    def _read(self, names: builtins.list[str]) -> builtins.list[Replica]:
        replicas = [_to_replica(record) for record in self.docker.inspect("container", *names)]
        return sorted(replicas, key=lambda replica: (replica.started_at, replica.id))

    def _explained(self, error: ServiceError, spec: ReplicaSpec, port: int) -> ServiceError:
        if re.search(r"port is already allocated|address already in use", error.message):
            return _port_taken(spec, port)
        if re.search(r"No such image|Unable to find image", error.message):
            return ServiceError(
                f"the image {spec.image} is missing on this Docker engine",
                where=spec.model,
                hint=f"headrace run {spec.model}   (it builds what is missing)",
            )
        return error


def require_quota_store(docker: Docker, settings: Settings) -> None:
    """
    Raises:
        SettingsError: containers cannot reach `quota_store` and would refuse every request with a quota.
    """
    if settings.quota_store is None:
        return
    store = urlsplit(settings.quota_store)
    if store.scheme == "unix":
        why = "is a socket of this machine, which containers cannot open"
    elif is_loopback(store.hostname or "") and docker.has_bridge:
        why = f"is at {store.hostname}, which is the container itself inside a container"
    else:
        return
    raise SettingsError(
        f"quota_store: {store.scheme}://... {why}",
        where="settings",
        hint="use a Redis that containers can reach, for example one that listens on the bridge: redis://172.17.0.1:6379",
    )


def _port_taken(spec: ReplicaSpec, port: int) -> PortTaken:
    return PortTaken(f"port {port} is in use", where=spec.model, hint="set replica_ports in headrace.toml to a free range")


def _to_replica(record: dict[str, Any]) -> Replica:
    labels = record["Config"]["Labels"]
    spec = ReplicaSpec(
        labels["headrace.model"],
        labels["headrace.version"],
        labels["headrace.bento"],
        record["Config"]["Image"],
        int(labels["headrace.threads"]),
        cast(Pool, labels.get("headrace.pool", "main")),
    )
    return Replica(
        id=record["Name"].lstrip("/"),
        spec=spec,
        host=LOOPBACK,
        port=int(labels["headrace.port"]),
        runner="docker",
        state=STATES.get(record["State"]["Status"], "failed"),
        container=record["Id"],
        started_at=_seconds(record["State"]["StartedAt"]),
        settings_digest=labels.get("headrace.settings", ""),
    )


def _seconds(moment: str) -> float:
    """Converts the engine's timestamp to seconds since the epoch; its year 1 means never."""
    trimmed = re.sub(r"\.(\d{1,6})\d*", r".\1", moment).replace("Z", "+00:00")
    parsed = datetime.fromisoformat(trimmed)
    return parsed.timestamp() if parsed.year > 1 else 0.0
