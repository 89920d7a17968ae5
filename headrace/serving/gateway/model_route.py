"""What serves a model behind the gateway: its replicas, and how requests are split between their pools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headrace.serving.replicas.replica import Pool, Replica


@dataclass(frozen=True)
class Traffic:
    """How the requests of a model are split."""

    canary: float = 0.0
    """Percent of the requests that the canary pool answers."""
    shadow: float = 0.0
    """Percent of the requests that are copied to the shadow pool, whose answers are discarded."""


@dataclass(frozen=True)
class ModelRoute:
    """The replicas of one model behind the gateway."""

    endpoints: list[Replica]
    traffic: Traffic = Traffic()
    previous: tuple[Replica, ...] = ()
    """Replicas of the previous version, until the current version is final: they serve again if the roll-out is killed."""

    def pool(self, name: Pool) -> list[Replica]:
        return [endpoint for endpoint in self.endpoints if endpoint.pool == name]


Routes = Mapping[str, ModelRoute]
"""Model to its replicas."""


def versions(replicas: Iterable[Replica]) -> str:
    """Returns the versions of replicas as text, for example `1, 2`."""
    return ", ".join(sorted({replica.version for replica in replicas}))
