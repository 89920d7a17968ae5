"""What a replica is, and what a place that runs replicas has to do. No engine is imported here."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

Place = Literal["processes", "docker"]
Pool = Literal["main", "canary", "shadow"]
"""Replicas that answer, those that answer a share of the requests on trial, and those whose answers nobody gets."""
State = Literal["starting", "running", "stopping", "stopped", "failed"]


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica serves. Two equal specs are interchangeable behind the balancer."""

    model: str
    """The recipe's name."""
    version: str
    """The registry's version of the model, as text."""
    bento_tag: str
    image: str | None = None
    """Image to run; None where replicas are local processes."""
    threads: int = 1
    """Threads of the model's runtime in one replica."""
    pool: Pool = "main"
    """Which requests it is for. A replica of the `shadow` pool meters nothing and spends no quota."""


@dataclass(frozen=True)
class Replica:
    """One running (or lately running) server of one model version."""

    id: str
    """`<model>-v<version>-<4 hex digits>`: the program's or the container's name."""
    model: str
    version: str
    bento_tag: str
    host: str
    port: int
    runner: Place
    state: State
    pid: int | None = None
    """Where replicas are processes."""
    container: str | None = None
    """The container's id, where they are containers."""
    image: str | None = None
    threads: int = 1
    started_at: float = 0.0
    """Seconds since the epoch."""
    pool: Pool = "main"
    """The pool it was started for."""
    told: str = ""
    """Which settings it was started with (`environment.told`)."""

    @property
    def spec(self) -> ReplicaSpec:
        """The spec this replica was started from."""
        return ReplicaSpec(self.model, self.version, self.bento_tag, self.image, self.threads, self.pool)

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port, as the balancer names it."""
        return self.host, self.port

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Replica:
        """The inverse of `to_dict`; unknown keys are left out, so that an older Headrace can read a newer one's file."""
        known = {field.name for field in fields(Replica)}
        return Replica(**{name: value for name, value in values.items() if name in known})


class Runner(Protocol):
    """A place that runs replicas: local processes, a Docker engine."""

    @property
    def place(self) -> Place:
        """Which one."""
        ...

    def start(self, spec: ReplicaSpec, port: int) -> Replica:
        """Starts one replica on `port` and returns at once, before it is ready.

        Raises:
            ServiceError: it cannot be started at all.
        """
        ...

    def stop(self, replica: Replica, drain_seconds: float) -> None:
        """Lets requests in flight end (SIGTERM, then SIGKILL after `drain_seconds`), and leaves no trace.

        Stopping a replica that is already gone does nothing.
        """
        ...

    def restart(self, replica: Replica, stop_seconds: float) -> None:
        """Ends a replica that is stuck (SIGTERM, then SIGKILL after `stop_seconds`) and starts it again as it was."""
        ...

    def list(self, model: str | None = None) -> list[Replica]:
        """Every replica there is, also those that failed or came from an earlier run, of `model` or of all models."""
        ...

    def logs(self, replica: Replica, lines: int) -> str:
        """The last `lines` lines that the replica wrote; empty when it wrote none."""
        ...


def new_id(spec: ReplicaSpec) -> str:
    """A fresh name for a replica of `spec`, such as `digits-v3-a1b2`."""
    return f"{spec.model}-v{spec.version}-{secrets.token_hex(2)}"


def now() -> float:
    return time.time()
