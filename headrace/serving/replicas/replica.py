"""What a replica is, and the interface of a runner. No engine is imported here: the watchdog reads these records."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from headrace.project import Project
from headrace.serving.local_http import Address

RunnerName = Literal["process", "docker"]
Pool = Literal["main", "canary", "shadow"]
"""Replicas that serve all requests, a share of them on trial, or copies of them whose answers are discarded."""
SCHEMA_VERSION = 2
"""Of files with replicas; in version 1 every replica had a host and a port."""
State = Literal["starting", "running", "stopping", "stopped", "failed"]


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica serves. Replicas of equal specs are interchangeable behind the load balancer."""

    model: str
    """The recipe's name."""
    version: str
    """The model's version in the registry, as text."""
    bento_tag: str
    image: str | None = None
    """Container image; None where replicas are local processes."""
    threads: int = 1
    """Threads of the model's runtime in one replica."""
    pool: Pool = "main"
    """A replica of the `shadow` pool records no usage and spends no quota."""


@dataclass(frozen=True)
class Replica:
    """One server of one model version.

    Two records are equal when they mean the same replica in the same pool; what changes while it runs is not compared.
    """

    id: str
    """`<model>-v<version>-<4 hex digits>`: the name of its program or container."""
    spec: ReplicaSpec
    address: Address
    """Its Unix socket, relative to the project's folder; host and port of one that an earlier version started."""
    runner: RunnerName = "process"
    settings_digest: str = field(default="", compare=False)
    """`environment.settings_digest` of the settings that it was started with; empty when unknown."""
    started_at: float = field(default=0.0, compare=False)
    """Seconds since the epoch; 0 when unknown."""
    state: State = field(default="running", compare=False)
    """As the runner last saw it."""
    pid: int | None = field(default=None, compare=False)
    """Only for processes."""
    container: str | None = field(default=None, compare=False)
    """The container's id."""

    @property
    def model(self) -> str:
        return self.spec.model

    @property
    def version(self) -> str:
        return self.spec.version

    @property
    def pool(self) -> Pool:
        return self.spec.pool

    def address_in(self, project: Project) -> Address:
        """Where requests reach it, whatever the working folder."""
        return project.root / self.address if isinstance(self.address, Path) else self.address

    def in_pool(self, pool: Pool) -> Replica:
        """The same replica as a member of another pool."""
        return replace(self, spec=replace(self.spec, pool=pool))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without state, pid and container: the runner knows those."""
        if isinstance(self.address, Path):
            listens: dict[str, Any] = {"socket": str(self.address)}
        else:
            listens = {"host": self.address[0], "port": self.address[1]}
        placed = {"id": self.id, **listens, "runner": self.runner}
        return {**placed, **asdict(self.spec), "settings_digest": self.settings_digest, "started_at": self.started_at}

    @staticmethod
    def from_dict(values: dict[str, Any], model: str | None = None) -> Replica:
        """The inverse of `to_dict`. Unknown keys are ignored, and the names that earlier versions wrote are understood.

        Args:
            model: for records that do not name their model.
        """
        values = {"model": model, **values}
        if "replica" in values:
            values.setdefault("id", values["replica"])
        if values.get("runner") == "processes":
            values["runner"] = "process"
        spec = ReplicaSpec(**{f.name: values[f.name] for f in fields(ReplicaSpec) if f.name in values})
        address = Path(values["socket"]) if "socket" in values else (str(values["host"]), int(values["port"]))
        kept = ("id", "runner", "settings_digest", "started_at")
        return Replica(spec=spec, address=address, **{name: values[name] for name in kept if name in values})


class Runner(Protocol):
    """Starts, stops and lists replicas: as local processes, or as containers of a Docker engine."""

    @property
    def name(self) -> RunnerName: ...

    def start(self, spec: ReplicaSpec) -> Replica:
        """Starts a replica and returns before it is ready.

        Raises:
            ServiceError: it cannot be started.
        """
        ...

    def stop(self, replica: Replica, drain_seconds: float) -> None:
        """Stops a replica after its requests in flight (SIGTERM, then SIGKILL after `drain_seconds`), and removes it.

        Does nothing for a replica that is gone.
        """
        ...

    def has_connections(self, replica: Replica) -> bool:
        """Whether something on this machine has an open connection to a replica."""
        ...

    def restart(self, replica: Replica, stop_seconds: float) -> None:
        """Restarts a stuck replica unchanged: SIGTERM, then SIGKILL after `stop_seconds`."""
        ...

    def list(self, model: str | None = None) -> list[Replica]:
        """All replicas of `model`, or of all models, including failed ones and those of an earlier run."""
        ...

    def logs(self, replica: Replica, lines: int) -> str:
        """The last `lines` lines of the replica's output."""
        ...


def new_id(spec: ReplicaSpec) -> str:
    """A new id for a replica of `spec`, for example `digits-v3-a1b2`."""
    return f"{spec.model}-v{spec.version}-{secrets.token_hex(2)}"
