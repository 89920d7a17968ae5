"""A canary: the new version answers a share of the requests, which rises step by step while it keeps its bounds."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.serving.gateway.clusters import Traffic
from headrace.serving.replicas.replica import Replica
from headrace.serving.rollout.watch import Trial, look, scale_for_share, watch


def try_as_canary(trial: Trial, replicas: int) -> list[Replica]:
    """Takes the new version through its steps and returns its replicas, which are in the door's pool `canary` then.

    As many run as its share needs, so that each has to bear what it will have to bear.

    Raises:
        RolloutAborted: it left its bounds. It still gets its share: the caller ends the trial.
    """
    site = trial.site
    for share in trial.how.steps:
        scale_for_share(trial, "canary", share, replicas)
        site.send(Traffic(canary=share))
        site.report(f"canary {share:g} %: version {trial.spec.version} beside {trial.champions}")
        _watch_step(trial, f"canary {share:g} %", site.serving("canary"))
    return site.serving("canary")


def _watch_step(trial: Trial, name: str, canaries: Sequence[Replica]) -> None:
    site, champions = trial.site, trial.site.serving()
    new, old = look(site, "canary", canaries), look(site, "main", champions)
    watch(
        trial,
        name,
        "canary",
        lambda: look(site, "canary", canaries).since(new),
        lambda: look(site, "main", champions).since(old),
    )
