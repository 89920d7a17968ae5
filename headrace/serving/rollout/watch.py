"""Looks at a new version while it serves, and says when it leaves its bounds.

Envoy counts requests, errors and seconds of each pool; replicas count their answers (`/metrics`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.errors import RolloutAborted
from headrace.recipe.serve import RolloutConfig
from headrace.serving.gateway import gateway
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.local_http import try_request
from headrace.serving.replicas.replica import Pool, Replica, ReplicaSpec
from headrace.serving.rollout.judging import Reading, Seen, judge
from headrace.serving.rollout.steps import Site, add_to_pool, start_ready

LOOK_SECONDS = 1.0
"""Envoy brings its latencies up to date once a second."""
LINES = 10
"""Said of one step, at most and about."""
UNHEALTHY_LOOKS = 3
"""So many looks in a row without any healthy replica are no hiccup."""
Note = Callable[[dict[str, Any]], None]
Look = Callable[[], Seen]


@dataclass(frozen=True)
class Trial:
    """A new version that is watched beside, or after, the champion."""

    site: Site
    spec: ReplicaSpec
    champions: str
    """Versions that serve, for messages."""
    how: RolloutConfig
    note: Note
    """Keeps the facts of a step in the journal."""


def scale_for_share(trial: Trial, pool: Pool, share: float, replicas: int) -> None:
    """As many replicas of the new version in `pool` as `share` percent of `replicas` needs, so that each has to bear what it
    will have to bear. Those that are missing are started and let in."""
    missing = min(replicas, math.ceil(share / 100 * replicas)) - len(trial.site.serving(pool))
    if missing > 0:
        add_to_pool(trial.site, start_ready(trial.site, replace(trial.spec, pool=pool), missing))


def look(site: Site, pool: Pool, endpoints: Sequence[Replica]) -> Seen:
    """What a pool did until now: Envoy's counts since it started, its replicas' since they did."""
    answers = {(e.id, answer): count for e in endpoints for answer, count in _answers(e)}
    return Seen(gateway.pool_stats(site.settings, site.model).get(pool, PoolStats()), answers)


def watch(
    trial: Trial, name: str, pool: Pool, new: Look, champion: Look, last: Callable[[Reading], Reading] | None = None
) -> None:
    """Returns when the new version kept its bounds for as long as the recipe says (`bake`).

    Args:
        name: of this step, such as `canary 25 %`.
        pool: where its replicas are.
        new, champion: what each did since the step began.
        last: judges once more, at the end.

    Raises:
        RolloutAborted: it left one. Nothing is changed here: the caller takes it back.
    """
    began, told, unhealthy = time.monotonic(), 0.0, 0
    bake = trial.how.bake_seconds
    while True:
        elapsed = time.monotonic() - began
        reading = judge(new(), champion(), trial.how.bounds)
        unhealthy = unhealthy + 1 if not gateway.healthy_endpoints(trial.site.settings, trial.site.model, pool) else 0
        if unhealthy >= UNHEALTHY_LOOKS:
            reading = replace(reading, bound="ready", said="none of its replicas is healthy")
        if elapsed >= bake and last is not None and reading.bound is None:
            reading = last(reading)
        if reading.bound is not None:
            raise _out_of_bounds(trial, name, reading)
        if elapsed >= bake:
            break
        if elapsed - told >= max(LOOK_SECONDS, bake / LINES):
            told = elapsed
            trial.site.report(f"{name}, {elapsed:.0f} of {bake:g} s: {reading.line()}")
        time.sleep(min(LOOK_SECONDS, bake - elapsed))
    least = trial.how.bounds.min_requests
    judged = reading.requests >= least
    unjudged = f"not judged: {reading.requests:,} requests came, {least:,} are needed"
    trial.site.report(f"{name}, {f'passed: {reading.line()}' if judged else unjudged}")
    trial.note({"step": name, "judged": judged, **reading.facts()})


def _out_of_bounds(trial: Trial, name: str, reading: Reading) -> RolloutAborted:
    model = trial.spec.model
    return RolloutAborted(
        f"{model}@{trial.spec.version} left its bounds ({name}): {reading.said}; {model}@{trial.champions} serves on",
        where=f"recipes/{model}.yaml: serve.rollout.bounds",
        hint=f"see what it does (headrace history {model}); change recipe or data; or try again: headrace run {model} --force",
        facts={"step": name, "serving": trial.champions, **reading.facts()},
    )


def _answers(endpoint: Replica) -> Iterator[tuple[str, float]]:
    """How often a replica gave each answer; nothing where it does not tell."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(_metrics(endpoint)):
        for sample in family.samples:
            if sample.name == "headrace_answers_total":
                yield sample.labels["answer"], sample.value


def _metrics(endpoint: Replica) -> str:
    answer = try_request(endpoint.address, "/metrics", timeout_seconds=2.0)
    return answer.text if answer and answer.status == 200 and answer.content_type == "text/plain" else ""
