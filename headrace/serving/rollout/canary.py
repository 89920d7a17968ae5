"""Tries a new version as canary: it answers a share of the requests, which grows while the version stays within its bounds."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.serving.gateway.model_route import Traffic
from headrace.serving.replicas.replica import Replica
from headrace.serving.rollout.monitor import Trial, compared_answers, monitor, pool_snapshot, scale_for_share


def run_canary(trial: Trial, replicas: int) -> list[Replica]:
    """Runs all steps of the trial and returns the replicas of the new version, which are in the pool `canary` then.

    Each step runs as many replicas as its share needs, so that each of them carries its production load.

    Raises:
        RolloutAborted: the version left its bounds. It keeps its share: the caller ends the trial.
    """
    context = trial.context
    for share in trial.config.steps:
        scale_for_share(trial, "canary", share, replicas)
        context.split_traffic(Traffic(canary=share))
        context.report(f"canary {share:g} %: version {trial.spec.version} beside {trial.champion_versions}")
        _monitor_step(trial, f"canary {share:g} %", context.endpoints("canary"))
    return context.endpoints("canary")


def _monitor_step(trial: Trial, step: str, canaries: Sequence[Replica]) -> None:
    context, champions = trial.context, trial.context.endpoints("main")
    new_before, champion_before = pool_snapshot(context, "canary", canaries), pool_snapshot(context, "main", champions)
    monitor(
        trial,
        step,
        "canary",
        lambda: pool_snapshot(context, "canary", canaries).since(new_before),
        lambda: pool_snapshot(context, "main", champions).since(champion_before),
        compared_answers(context, canaries, champions),
    )
