"""Monitors a new version while it serves, and aborts the roll-out when it leaves its bounds.

Envoy counts requests, errors and latencies of each pool; replicas count their answers (`/metrics`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import RolloutAborted
from headrace.recipe.serve import RolloutConfig
from headrace.serving.gateway import admin
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.local_http import try_request
from headrace.serving.replicas.replica import Pool, Replica, ReplicaSpec
from headrace.serving.rollout.canary_analysis import Measurement, PoolSnapshot, analyse
from headrace.serving.rollout.context import RolloutContext
from headrace.serving.rollout.steps import add_to_pool, start_replicas

INTERVAL_SECONDS = 1.0
"""Envoy updates its latencies once a second."""
REPORTS_PER_STEP = 10
MAX_UNHEALTHY = 3
"""This many measurements in a row without a healthy replica abort the roll-out: it is not a brief interruption."""
RecordStep = Callable[[dict[str, Any]], None]
Snapshot = Callable[[], PoolSnapshot]


@dataclass(frozen=True)
class Trial:
    """A new version that is compared with the champion."""

    context: RolloutContext
    spec: ReplicaSpec
    champion_versions: str
    """Versions that serve, for messages."""
    config: RolloutConfig
    record_step: RecordStep
    """Writes the measurements of a step to the journal."""


def scale_for_share(trial: Trial, pool: Pool, share: float, replicas: int) -> None:
    """Starts the replicas that `pool` lacks for `share` percent of `replicas`, so that each carries its production load."""
    missing = min(replicas, math.ceil(share / 100 * replicas)) - len(trial.context.endpoints(pool))
    if missing > 0:
        add_to_pool(trial.context, start_replicas(trial.context, replace(trial.spec, pool=pool), missing))


def pool_snapshot(context: RolloutContext, pool: Pool, endpoints: Sequence[Replica]) -> PoolSnapshot:
    """Returns the counters of a pool: Envoy's since it started, the replicas' since they started."""
    answers = {(e.id, answer): count for e in endpoints for answer, count in _answer_counts(e)}
    return PoolSnapshot(admin.pool_stats(context.settings, context.model).get(pool, PoolStats()), answers)


def monitor(
    trial: Trial,
    step: str,
    pool: Pool,
    new: Snapshot,
    champion: Snapshot,
    final_check: Callable[[Measurement], Measurement] | None = None,
) -> None:
    """Returns when the new version has stayed within its bounds for the time that the recipe sets (`bake`).

    Args:
        step: its name, for example `canary 25 %`.
        pool: the pool of the new version's replicas.
        new, champion: the counters of each since the step began.
        final_check: runs once at the end, and may set the bound that was left.

    Raises:
        RolloutAborted: the version left a bound. Nothing is changed here: the caller restores the previous version.
    """
    began, reported, unhealthy = time.monotonic(), 0.0, 0
    bake = trial.config.bake_seconds
    while True:
        elapsed = time.monotonic() - began
        measured = analyse(new(), champion(), trial.config.bounds)
        healthy = admin.healthy_endpoints(trial.context.settings, trial.context.model, pool)
        unhealthy = 0 if healthy else unhealthy + 1
        if unhealthy >= MAX_UNHEALTHY:
            measured = replace(measured, bound="ready", reason="none of its replicas is healthy")
        if elapsed >= bake and final_check is not None and measured.bound is None:
            measured = final_check(measured)
        if measured.bound is not None:
            raise _aborted(trial, step, measured)
        if elapsed >= bake:
            break
        if elapsed - reported >= max(INTERVAL_SECONDS, bake / REPORTS_PER_STEP):
            reported = elapsed
            trial.context.report(f"{step}, {elapsed:.0f} of {bake:g} s: {measured.summary()}")
        time.sleep(min(INTERVAL_SECONDS, bake - elapsed))
    least = trial.config.bounds.min_requests
    is_judged = measured.requests >= least
    too_few = f"not judged: {measured.requests:,} requests came, {least:,} are needed"
    trial.context.report(f"{step}, {f'passed: {measured.summary()}' if is_judged else too_few}")
    trial.record_step({"step": step, "judged": is_judged, **measured.facts()})


def _aborted(trial: Trial, step: str, measured: Measurement) -> RolloutAborted:
    model = trial.spec.model
    return RolloutAborted(
        f"{model}@{trial.spec.version} left its bounds ({step}): {measured.reason}; "
        f"{model}@{trial.champion_versions} keeps serving",
        where=f"recipes/{model}.yaml: serve.rollout.bounds",
        hint=f"see the measurements (headrace history {model}); change recipe or data; or retry: headrace run {model} --force",
        facts={"step": step, "serving": trial.champion_versions, **measured.facts()},
    )


def _answer_counts(endpoint: Replica) -> Iterator[tuple[str, float]]:
    """Yields how often a replica gave each answer; nothing when it does not answer."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(_metrics(endpoint)):
        for sample in family.samples:
            if sample.name == "headrace_answers_total":
                yield sample.labels["answer"], sample.value


def _metrics(endpoint: Replica) -> str:
    answer = try_request(endpoint.address, "/metrics", timeout_seconds=2.0)
    return answer.text if answer and answer.status == 200 and answer.content_type == "text/plain" else ""
