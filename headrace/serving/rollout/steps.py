"""The steps of every roll-out: start replicas, add them to the gateway, remove them, drain and stop them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from headrace.errors import HeadraceError
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.gateway.model_route import Traffic, versions
from headrace.serving.replicas import environment
from headrace.serving.replicas.replica import Replica, ReplicaSpec, Runner
from headrace.serving.rollout.context import RolloutContext
from headrace.serving.rollout.readiness import wait_ready
from headrace.settings import Settings

POLL_SECONDS = 0.1


def start_replicas(context: RolloutContext, spec: ReplicaSpec, count: int) -> list[Replica]:
    """Starts `count` replicas and waits until each is ready; stops all of them if one does not become ready."""
    started: list[Replica] = []
    try:
        for _ in range(count):
            started.append(context.runner.start(spec))
        if started:
            noun = "replica" if spec.pool == "main" else spec.pool
            context.report(
                f"{count} new {noun}{'s' * (count > 1)} of version {spec.version}: "
                + ", ".join(replica.id for replica in started)
            )
        wait_ready(context, spec, started, context.settings.ready_seconds)
        return started
    except BaseException:
        stop_all(started, context.settings, lambda replica: context.runner, drain_seconds=1.0)
        raise


def add_to_pool(context: RolloutContext, new: Sequence[Replica], previous: Sequence[Replica] | None = None) -> None:
    """Adds replicas to their pools and returns when Envoy uses them; if it does not, restores the state before.

    Args:
        previous: replicas that serve again if this process is killed before the version is final.
    """
    before = context.endpoints()
    recorded = {replica.id for replica in [*before, *gateway.previous_replicas(context.project, context.model)]}
    try:
        gateway.update_model(context.project, context.model, [*before, *new], previous=previous)
        for pool in {replica.pool for replica in new}:
            addresses = {replica.address for replica in new if replica.pool == pool}
            admin.wait_until_healthy(context.project, context.model, addresses, pool=pool)
    except BaseException:
        gateway.update_model(context.project, context.model, before)
        stop(context, [replica for replica in new if replica.id not in recorded])
        raise


def remove_from_pool(context: RolloutContext, removed: Sequence[Replica]) -> None:
    """Removes replicas from the gateway and returns when Envoy sends them nothing more. They keep running."""
    remaining = [endpoint for endpoint in context.endpoints() if endpoint not in removed]
    gateway.update_model(context.project, context.model, remaining)
    if removed and envoy_process.is_ours(context.project):
        for pool in {endpoint.pool for endpoint in removed}:
            addresses = {endpoint.address for endpoint in removed if endpoint.pool == pool}
            admin.wait_until_removed(context.project, context.model, addresses, pool=pool)


def stop(context: RolloutContext, removed: Sequence[Replica]) -> None:
    """Drains and stops replicas that were removed from the gateway."""
    if not removed:
        return
    context.report(f"draining {len(removed)} replica{'s' * (len(removed) > 1)} of version {versions(removed)}")
    stop_all(removed, context.settings, lambda replica: context.at(replica.runner).runner)


def stop_trials(context: RolloutContext) -> None:
    """Ends all trials: sends no more requests to canaries and shadows, removes them from the gateway, then stops them."""
    on_trial = [*context.endpoints("canary"), *context.endpoints("shadow")]
    if not on_trial:
        return
    context.split_traffic(Traffic())
    remove_from_pool(context, on_trial)
    kept = {endpoint.id for endpoint in context.endpoints("main")}
    stop(context, [endpoint for endpoint in on_trial if endpoint.id not in kept])


def stop_all(
    replicas: Sequence[Replica], settings: Settings, runner_of: Callable[[Replica], Runner], drain_seconds: float | None = None
) -> None:
    """Drains and stops replicas in parallel; one that cannot be stopped is left to the next clean-up."""
    limit = settings.drain_seconds if drain_seconds is None else drain_seconds
    if not replicas:
        return
    with ThreadPoolExecutor(len(replicas)) as pool:
        stopping = [pool.submit(_drain_and_stop, replica, runner_of(replica), limit) for replica in replicas]
    for future in stopping:
        with contextlib.suppress(HeadraceError):
            future.result()


def _drain_and_stop(replica: Replica, runner: Runner, limit: float) -> None:
    """Envoy closes a connection to a removed replica once its last request is answered; then SIGTERM interrupts nothing."""
    start = time.monotonic()
    while runner.has_connections(replica) and time.monotonic() - start < limit:
        time.sleep(POLL_SECONDS)
    runner.stop(replica, max(1.0, limit - (time.monotonic() - start)))


def serves_as(replica: Replica, spec: ReplicaSpec, settings: Settings) -> bool:
    """Whether a replica serves exactly this spec and was started with these settings."""
    return replica.spec == spec and replica.settings_digest == environment.settings_digest(settings)
