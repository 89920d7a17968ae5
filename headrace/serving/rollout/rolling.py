"""One model version after another, without a request lost: at once, or after a trial as canary or shadow.

Which replicas serve stands in the door's `models.json` and nowhere else. Whatever a killed roll-out left is therefore known
for what it is: a replica that does not stand there serves nobody, canaries and shadows stand in pools of their own, and a
version beside which predecessors stand is not released. The next roll-out ends them all, and lets the predecessors serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import ServiceError, near_miss
from headrace.project import Project
from headrace.recipe.serve import RolloutConfig
from headrace.serving.gateway import gateway
from headrace.serving.gateway.clusters import Traffic, versions
from headrace.serving.replicas.replica import Replica, ReplicaSpec, Runner
from headrace.serving.rollout import steps
from headrace.serving.rollout.canary import try_as_canary
from headrace.serving.rollout.predecessors import restore_previous
from headrace.serving.rollout.shadow import try_as_shadow
from headrace.serving.rollout.steps import (
    Report,
    Site,
    add_to_pool,
    alone,
    remove_from_pool,
    runner_for,
    start_ready,
)
from headrace.serving.rollout.watch import Note, Trial, look, watch
from headrace.settings import Settings

__all__ = ["Report", "Rollout", "is_serving", "remove", "roll_out", "runner_for", "scale", "stop_unknown", "take_back"]

AT_ONCE = RolloutConfig()


@dataclass(frozen=True)
class Rollout:
    """What serves after a roll-out."""

    spec: ReplicaSpec
    replicas: list[Replica]
    address: str
    """Where clients call the model."""
    changed: bool
    """False when just this served already."""
    replaced: tuple[str, ...] = ()
    """Versions that served before and do no longer."""


def is_serving(spec: ReplicaSpec, replicas: int, project: Project, settings: Settings) -> bool:
    """Whether Envoy sends requests to just `replicas` healthy replicas of `spec`, started with these settings and for good.

    Takes milliseconds.
    """
    endpoints = gateway.endpoints_by_model(project).get(spec.model, [])
    if len(endpoints) != replicas or not all(steps.serves_as(e, spec, settings) for e in endpoints):
        return False
    if gateway.predecessors(project, spec.model):
        return False
    return gateway.healthy_endpoints(settings, spec.model) == {e.address for e in endpoints} and gateway.is_open(
        project, settings
    )


def _forget(facts: dict[str, Any]) -> None:
    """A roll-out that nobody keeps a journal of."""


def roll_out(
    spec: ReplicaSpec,
    replicas: int,
    project: Project,
    settings: Settings,
    runner: Runner,
    report: Report,
    how: RolloutConfig = AT_ONCE,
    note: Note = _forget,
    settled: bool = True,
) -> Rollout:
    """Lets `replicas` replicas of `spec` serve its model, in place of whatever serves it now.

    Replicas of `spec` that were started with other settings are replaced too. Safe to run again after a kill at any instant.
    When the new replicas do not become ready, the old ones serve on.

    Args:
        how: at once, or after a trial; only where another version serves, since a trial is against that one.
        note: is given the facts of each step of a trial.
        settled: False where more has to happen until the new version serves for good: what served before is remembered until
            `door.settle`, and serves again when this process is killed.

    Raises:
        Busy: another roll-out of the same model is under way.
        SettingsError: `access` is not what the door was opened with.
        ServiceError: the new replicas do not become ready; with the last lines of their log.
        PortTaken: no port is left for a replica, or another program holds one of Envoy's.
        RolloutAborted: the new version left its bounds while it was watched; what served before serves on.
    """
    address = gateway.address(settings, spec.model)
    if is_serving(spec, replicas, project, settings):
        return Rollout(spec, gateway.endpoints_by_model(project)[spec.model], address, changed=False)
    gateway.require_same_access(project, settings)
    site = Site(spec.model, project, settings, runner, report)
    with alone(project, spec.model):
        gateway.open_gateway(project, settings)
        _clean_up(site)
        before = site.serving()
        kept = _keep(site, spec, replicas, before)
        is_new = all(endpoint.spec != spec for endpoint in before)
        trial = _trial(site, spec, before, how, note) if is_new and how.bake_seconds else None
        try:
            tried = _try(trial, replicas) if trial else []
            fresh = [endpoint.in_pool("main") for endpoint in tried]
            fresh += start_ready(site, spec, replicas - len(kept) - len(fresh))
            watched = trial if how.strategy == "rolling" else None
            out = _replace(site, [*kept, *fresh], fresh, before, watched)
        except BaseException:
            _undo(site)
            raise
        if settled:
            site.settle()
        steps.stop(site, out)
    replaced = tuple(sorted({e.version for e in out} - {spec.version}))
    return Rollout(spec, [*kept, *fresh], address, changed=True, replaced=replaced)


def scale(model: str, replicas: int, project: Project, settings: Settings, runner: Runner, report: Report) -> Rollout:
    """More or fewer replicas of what serves now.

    Raises:
        ServiceError: nothing serves `model`; and whatever `roll_out` raises.
    """
    endpoints = [endpoint for endpoint in gateway.endpoints_by_model(project).get(model, []) if endpoint.pool == "main"]
    if not endpoints:
        known = near_miss(model, gateway.endpoints_by_model(project))
        raise ServiceError(f"no replica serves {model!r}; {known}", hint=f"headrace run {model}")
    return roll_out(endpoints[-1].spec, replicas, project, settings, runner, report)


def remove(model: str, project: Project, settings: Settings, runner: Runner, report: Report) -> list[Replica]:
    """Takes a model out of the door and stops its replicas, which are returned. Removing what does not serve does nothing."""
    site = Site(model, project, settings, runner, report)
    with alone(project, model):
        out = gateway.endpoints_by_model(project).get(model, [])
        remove_from_pool(site, out)
        steps.stop(site, out)
        return [*out, *stop_unknown(site)]


def take_back(site: Site) -> None:
    """Ends what a killed roll-out left: no canary, no shadow, what was released serves again. It is remembered still.

    Raises:
        ServiceError: what was released cannot serve any longer; what serves now serves on.
    """
    steps.end_trials(site)
    restore_previous(site)
    stop_unknown(site)


def _clean_up(site: Site) -> None:
    """A predecessor that cannot serve any longer does not stand in the way of what comes after it."""
    try:
        take_back(site)
    except ServiceError as error:
        site.report(f"what served before cannot serve again: {error.message}")
        stop_unknown(site)
    site.settle()


def _undo(site: Site) -> None:
    """A predecessor that cannot serve at this moment is remembered: the keeper tries it again."""
    steps.end_trials(site)
    try:
        restore_previous(site)
    except ServiceError as error:
        site.report(f"what served before cannot serve again: {error.message}")
    else:
        site.settle()


def stop_unknown(site: Site) -> list[Replica]:
    """Stops the replicas that do not stand in the door, which are returned."""
    known = {endpoint.id for endpoint in gateway.endpoints_by_model(site.project).get(site.model, [])}
    left = [replica for replica in site.runner.list(site.model) if replica.id not in known]
    steps.stop_all(left, site.settings, lambda replica: site.runner)
    return left


def _trial(site: Site, spec: ReplicaSpec, before: Sequence[Replica], how: RolloutConfig, note: Note) -> Trial | None:
    """None where nothing healthy serves that a new version could be held against."""
    healthy = gateway.healthy_endpoints(site.settings, site.model, "main")
    if not any(endpoint.address in healthy for endpoint in before):
        return None
    return Trial(site, spec, versions(before), how, note)


def _keep(site: Site, spec: ReplicaSpec, wanted: int, before: Sequence[Replica]) -> list[Replica]:
    """Those that serve just so already and are healthy, as many as are wanted."""
    healthy = gateway.healthy_endpoints(site.settings, site.model, "main")
    return [e for e in before if steps.serves_as(e, spec, site.settings) and e.address in healthy][:wanted]


def _try(trial: Trial, replicas: int) -> list[Replica]:
    """The replicas that passed as canaries and can go live as they are; those of a shadow cannot."""
    if trial.how.strategy == "canary":
        return try_as_canary(trial, replicas)
    if trial.how.strategy == "shadow":
        try_as_shadow(trial, replicas)
    return []


def _replace(
    site: Site, after: Sequence[Replica], fresh: Sequence[Replica], before: Sequence[Replica], watched: Trial | None
) -> list[Replica]:
    """Lets `fresh` in, takes out what is not in `after`, which is returned, and watches. Those that are out run on beside
    the door, so that they serve again at once when the new version fails."""
    kept = {endpoint.id for endpoint in after}
    out = [endpoint for endpoint in before if endpoint.id not in kept]
    champion = look(site, "main", before) if watched else None
    is_new = any(old.spec != new.spec for old in before for new in fresh)
    add_to_pool(site, fresh, before if is_new else None)
    site.send(Traffic())
    remove_from_pool(site, [*out, *site.serving("canary")])
    if watched and champion:
        began = look(site, "main", fresh)
        watch(
            watched,
            f"version {watched.spec.version} live",
            "main",
            lambda: look(site, "main", fresh).since(began),
            lambda: champion,
        )
    return out
