"""Monitors a new version while it serves, and aborts the roll-out when it leaves its bounds.

Envoy counts requests, errors and latencies of each pool. Replicas record their answers in files, and count requests to which
the model had no finite answer (`/metrics`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import RolloutAborted
from headrace.recipe.serve import RolloutConfig
from headrace.serving.gateway import admin
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.local_http import try_request
from headrace.serving.replicas.replica import Pool, Replica, ReplicaSpec
from headrace.serving.rollout.canary_analysis import Measurement, PoolSnapshot, analyse, why_not_judged
from headrace.serving.rollout.context import RolloutContext
from headrace.serving.rollout.recorded_answers import AnswerReader, ComparedAnswers
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
    stats = admin.pool_stats(context.project, context.model).get(pool, PoolStats())
    return PoolSnapshot(stats, {replica.id: _no_answers(context, replica) for replica in endpoints})


def compared_answers(
    context: RolloutContext, new: Sequence[Replica], champions: Sequence[Replica], with_past: bool = False
) -> ComparedAnswers | None:
    """Returns the votes of both versions from now on; None for a model that generates text.

    Args:
        with_past: the champion no longer answers, and what it recorded last is read.
    """
    if any(_output(context, replica) == "text" for replica in champions):
        return None
    usage = context.project.usage
    return ComparedAnswers(
        AnswerReader([usage / replica.id for replica in new]),
        AnswerReader([usage / replica.id for replica in champions], with_past),
    )


def monitor(
    trial: Trial,
    step: str,
    pool: Pool,
    new: Snapshot,
    champion: Snapshot,
    answers: ComparedAnswers | None,
    final_check: Callable[[Measurement], Measurement] | None = None,
) -> None:
    """Returns when the new version has stayed within its bounds for the time that the recipe sets (`bake`).

    Args:
        step: its name, for example `canary 25 %`.
        pool: the pool of the new version's replicas.
        new, champion: the counters of each since the step began.
        answers: what both answered since then; None where answers are not compared.
        final_check: runs once at the end, and may set the bound that was left.

    Raises:
        RolloutAborted: the version left a bound. Nothing is changed here: the caller restores the previous version.
    """
    began, reported, unhealthy = time.monotonic(), 0.0, 0
    bake = trial.config.bake_seconds
    while True:
        elapsed = time.monotonic() - began
        votes = answers.votes() if answers else ({}, {})
        # Clients of another time may send other mistakes: refusals are compared only where both versions serve together.
        measured = analyse(new(), champion(), trial.config.bounds, votes, compares_refusals=pool != "main")
        healthy = admin.healthy_endpoints(trial.context.project, trial.context.model, pool)
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
    reason = why_not_judged(measured, trial.config.bounds)
    trial.context.report(f"{step}, " + (f"not judged: {reason}" if reason else f"passed: {measured.verdict()}"))
    trial.record_step({"step": step, "judged": reason is None, **measured.facts()})


def _aborted(trial: Trial, step: str, measured: Measurement) -> RolloutAborted:
    model = trial.spec.model
    return RolloutAborted(
        f"{model}@{trial.spec.version} left its bounds ({step}): {measured.reason}; "
        f"{model}@{trial.champion_versions} keeps serving",
        where=f"recipes/{model}.yaml: serve.rollout.bounds",
        hint=f"see the measurements (headrace history {model}); change recipe or data; or retry: headrace run {model} --force",
        facts={"step": step, "serving": trial.champion_versions, **measured.facts()},
    )


def _no_answers(context: RolloutContext, endpoint: Replica) -> float | None:
    """Returns how many requests a replica had no finite answer to; None when it does not tell."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(_metrics(context, endpoint)):
        for sample in family.samples:
            if sample.name == "headrace_no_answers_total":
                return float(sample.value)
    return None


def _metrics(context: RolloutContext, endpoint: Replica) -> str:
    answer = try_request(endpoint.address_in(context.project), "/metrics", timeout_seconds=2.0)
    return answer.text if answer and answer.status == 200 and answer.content_type == "text/plain" else ""


def _output(context: RolloutContext, replica: Replica) -> str | None:
    """Returns what a replica's contract says about its answers: probabilities, value or text; None when it does not tell."""
    path = f"/v1/models/{replica.model}"
    found = try_request(replica.address_in(context.project), path, token=context.token, timeout_seconds=2.0)
    described = found.json_or_text() if found and found.status == 200 else None
    contract = described.get("contract") if isinstance(described, dict) else None
    return contract.get("output") if isinstance(contract, dict) else None
