"""Runs replicas as hardened Docker containers, each with a Unix socket. The engine's records are the only state."""

from __future__ import annotations

import builtins
import hashlib
import math
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from headrace.errors import ServiceError, SettingsError
from headrace.files import private_folder
from headrace.permissions import FOR_CONTAINERS
from headrace.project import Project
from headrace.runtime import unix_socket
from headrace.serving.packaging.bento import SERVE_OLDER, SOCKET_OPTION
from headrace.serving.packaging.docker import Docker
from headrace.serving.packaging.image import LISTENS
from headrace.serving.replicas import environment
from headrace.serving.replicas.connections import has_connections
from headrace.serving.replicas.replica import Pool, Replica, ReplicaSpec, RunnerName, State, new_id
from headrace.settings import Settings, is_loopback

LOOPBACK = "127.0.0.1"
OLDER = (SERVE_OLDER, Path(unix_socket.__file__))
"""Programs that serve an older bento, the first one to be run."""
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

    def start(self, spec: ReplicaSpec) -> Replica:
        """Starts a container of `spec.image` with a Unix socket of its own, and returns before it is ready.

        Raises:
            ServiceError: the spec has no image, the image is missing, the engine refuses, or other users can enter the folder
                of sockets.
            SettingsError: as `require_quota_store`.
        """
        require_quota_store(self.docker, self.settings)
        if spec.image is None:
            raise ServiceError(
                f"{spec.bento_tag} has no image", where=spec.model, hint=f"headrace run {spec.model}   (it builds one)"
            )
        private_folder(self.project.sockets)
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
                *self._labels(spec),
                *environment.container_arguments(spec, name, self.project),
                *self._network(),
                *self._server(spec.image, name),
                environment=environment.docker_client_variables(self.project),
            )
        except ServiceError as error:
            self._remove(name)  # a container that failed to start is kept by the engine
            raise self._explained(error, spec) from None
        (replica,) = self._read([name])
        return replica

    def _network(self) -> builtins.list[str]:
        """The arguments for the container's network. Nothing listens on a port, so it has none unless it has to reach
        something: who takes over a model cannot send anything anywhere."""
        if self.settings.container_network is not None:
            return ["--network", self.settings.container_network]
        if not self.docker.has_bridge:  # such an engine may have no permission to make a network
            return ["--network", "host"]
        return [] if self.settings.quota_store is not None or environment.has_tracing() else ["--network", "none"]

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

    def has_connections(self, replica: Replica) -> bool:
        address = replica.address
        return has_connections(_in_container(address.name) if isinstance(address, Path) else address, None)

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
        return self.project.label

    def _labels(self, spec: ReplicaSpec) -> builtins.list[str]:
        values = {
            "project": self._project_label,
            "model": spec.model,
            "version": spec.version,
            "bento": spec.bento_tag,
            "threads": spec.threads,
            "pool": spec.pool,
            "settings": environment.settings_digest(self.settings),
        }
        return [part for name, value in values.items() for part in ("--label", f"headrace.{name}={value}")]

    def _server(self, image: str, name: str) -> builtins.list[str]:
        """The image and the arguments of its server; one that was built earlier does not know Unix sockets."""
        socket = str(_in_container(_socket_name(name)))
        found = self.docker.inspect("image", image)
        if not found or (found[0]["Config"].get("Labels") or {}).get(LISTENS):
            return [image, SOCKET_OPTION, socket, "--in-container"]
        folder = environment.socket_folder(name, self.project)
        for source in OLDER:
            shutil.copyfile(source, folder / source.name)
            (folder / source.name).chmod(FOR_CONTAINERS)
        script = _in_container(OLDER[0].name)
        return ["--entrypoint", "python3.11", image, "-P", str(script), socket, "/opt/bento", "--in-container"]

    def _remove(self, name: str) -> None:
        if self.docker.inspect("container", name):
            self.docker.run("rm", "--force", "--volumes", name)
        shutil.rmtree(self.project.sockets / name, ignore_errors=True)

    def _read(self, names: builtins.list[str]) -> builtins.list[Replica]:
        replicas = [self._to_replica(record) for record in self.docker.inspect("container", *names)]
        return sorted(replicas, key=lambda replica: (replica.started_at, replica.id))

    def _to_replica(self, record: dict[str, Any]) -> Replica:
        labels, name = record["Config"]["Labels"], record["Name"].lstrip("/")
        socket = (self.project.sockets / name / _socket_name(name)).relative_to(self.project.root)
        return Replica(
            id=name,
            spec=ReplicaSpec(
                labels["headrace.model"],
                labels["headrace.version"],
                labels["headrace.bento"],
                record["Config"]["Image"],
                int(labels["headrace.threads"]),
                cast(Pool, labels.get("headrace.pool", "main")),
            ),
            # A container of an earlier version has a port on loopback.
            address=(LOOPBACK, int(labels["headrace.port"])) if "headrace.port" in labels else socket,
            runner="docker",
            state=STATES.get(record["State"]["Status"], "failed"),
            container=record["Id"],
            started_at=_seconds(record["State"]["StartedAt"]),
            settings_digest=labels.get("headrace.settings", ""),
        )

    def _explained(self, error: ServiceError, spec: ReplicaSpec) -> ServiceError:
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


def _socket_name(name: str) -> str:
    """A short name of its own: containers that share a network are in one list of sockets of the kernel."""
    return f"{hashlib.sha256(name.encode()).hexdigest()[:8]}.sock"


def _in_container(name: str) -> Path:
    return environment.SOCKETS_IN_CONTAINER / name


def _seconds(moment: str) -> float:
    """Converts the engine's timestamp to seconds since the epoch; its year 1 means never."""
    trimmed = re.sub(r"\.(\d{1,6})\d*", r".\1", moment).replace("Z", "+00:00")
    parsed = datetime.fromisoformat(trimmed)
    return parsed.timestamp() if parsed.year > 1 else 0.0
