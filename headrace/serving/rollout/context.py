"""What every step of a roll-out needs, and the lock that keeps two roll-outs of one model apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from headrace.console import Report
from headrace.errors import Busy
from headrace.project import Project
from headrace.serving.gateway import envoy_process, gateway
from headrace.serving.gateway.model_route import Traffic
from headrace.serving.gateway.route_sync import wait_until_routed
from headrace.serving.replicas import runners
from headrace.serving.replicas.replica import Pool, Replica, Runner
from headrace.settings import Settings


@dataclass(frozen=True)
class RolloutContext:
    """The model that is rolled out, where its replicas run, and where to report."""

    model: str
    project: Project
    runner: Runner
    report: Report

    @property
    def settings(self) -> Settings:
        return self.project.settings

    @cached_property
    def token(self) -> str | None:
        """The token for calls to replicas; None with open access."""
        if self.settings.access == "open":
            return None
        from headrace.serving.access.tokens import operator_token

        return operator_token(self.project)

    def endpoints(self, pool: Pool | None = None) -> list[Replica]:
        """Returns the replicas of the model, or of one of its pools, as the gateway records them."""
        found = gateway.endpoints_by_model(self.project).get(self.model, [])
        return [endpoint for endpoint in found if pool in (None, endpoint.pool)]

    def at(self, runner_name: str) -> RolloutContext:
        """Returns this context with the runner of this name."""
        if self.runner.name == runner_name:
            return self
        return replace(self, runner=runners.runner_for(self.project, runner_name))

    def split_traffic(self, traffic: Traffic) -> None:
        """Sends shares of the requests to canaries and shadows; returns when Envoy does so."""
        gateway.update_model(self.project, self.model, self.endpoints(), traffic)
        if envoy_process.is_ours(self.project):
            wait_until_routed(self.project, self.model, gateway.read_routes(self.project)[self.model])

    def finalize(self) -> None:
        """Marks the version that serves now as final."""
        gateway.finalize(self.project, self.model)


@contextlib.contextmanager
def rollout_lock(project: Project, model: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keeps other roll-outs of `model` from starting until the block ends.

    Raises:
        Busy: another roll-out of the same model is running, and does not end within `wait_seconds`.
    """
    from filelock import FileLock, Timeout

    project.locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(project.locks / f"rollout-{model}.lock", timeout=wait_seconds):
            yield
    except Timeout:
        raise Busy(f"another roll-out of {model!r} is running", hint="wait for it to end, then run the same command") from None
