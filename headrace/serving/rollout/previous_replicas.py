"""Replicas of the previous version, kept until the new version is final, and restored when it fails.

They are recorded in the gateway's `models.json`, by the same write that adds the new version: whenever the process is killed
afterwards, the previous version can be restored.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from headrace.errors import ServiceError
from headrace.serving.gateway import gateway
from headrace.serving.replicas.replica import Replica
from headrace.serving.rollout.context import RolloutContext
from headrace.serving.rollout.readiness import wait_ready
from headrace.serving.rollout.steps import add_to_pool, remove_from_pool, start_replicas, stop

READY_SECONDS = 20.0
"""A replica that still runs answers at once; after a reboot it is starting."""


def restore_previous(context: RolloutContext) -> None:
    """Adds the previous replicas to the gateway, then removes and stops the others. Does not `finalize`.

    Safe to run again after a kill. Previous replicas that do not answer any more are replaced by new ones.

    Raises:
        ServiceError: the previous version cannot be started; the current one keeps serving.
    """
    previous = gateway.previous_replicas(context.project, context.model)
    if not previous:
        return
    spec, there = previous[-1].spec, context.at(previous[-1].runner)
    serving = [endpoint for endpoint in context.endpoints("main") if endpoint.spec == spec]
    restored = _ready(there, list(dict.fromkeys([*previous, *serving])))[: len(previous)]
    restored += start_replicas(there, spec, len(previous) - len(restored))
    add_to_pool(context, restored)
    removed = [endpoint for endpoint in context.endpoints("main") if endpoint not in restored]
    remove_from_pool(context, removed)
    stop(context, removed)


def _ready(context: RolloutContext, endpoints: Sequence[Replica]) -> list[Replica]:
    """Returns those that answer, asked in parallel."""
    seconds = min(READY_SECONDS, context.settings.ready_seconds)

    def is_ready(endpoint: Replica) -> bool:
        try:
            wait_ready(context, endpoint.spec, [endpoint], seconds)
        except ServiceError:
            return False
        return True

    with ThreadPoolExecutor(len(endpoints)) as pool:
        ready = list(pool.map(is_ready, endpoints))
    return [endpoint for endpoint, answers in zip(endpoints, ready, strict=True) if answers]
