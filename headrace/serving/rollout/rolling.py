"""Rolls out one model version after another without losing a request: directly, or after a trial as canary or shadow.

Only the gateway's `models.json` records which replicas serve. What a killed roll-out left is recognised by it: a replica that
is not recorded serves nothing, canaries and shadows are in pools of their own, and a version that has previous replicas is not
final. The next roll-out cleans all of that up and restores the previous version first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.console import Report
from headrace.errors import ServiceError, near_miss
from headrace.project import Project
from headrace.recipe.serve import RolloutConfig
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.gateway.model_route import Traffic, versions
from headrace.serving.replicas.replica import Replica, ReplicaSpec, Runner
from headrace.serving.rollout import steps
from headrace.serving.rollout.canary import run_canary
from headrace.serving.rollout.context import RolloutContext, rollout_lock
from headrace.serving.rollout.monitor import RecordStep, Trial, compared_answers, monitor, pool_snapshot
from headrace.serving.rollout.previous_replicas import restore_previous
from headrace.serving.rollout.shadow import run_shadow
from headrace.serving.rollout.steps import add_to_pool, remove_from_pool, start_replicas

WITHOUT_TRIAL = RolloutConfig()


@dataclass(frozen=True)
class Rollout:
    """What serves after a roll-out."""

    spec: ReplicaSpec
    replicas: list[Replica]
    address: str
    """The model's URL at the gateway."""
    changed: bool
    """False when exactly this served already."""
    replaced: tuple[str, ...] = ()
    """Versions that served before and do not serve any more."""


def is_serving(spec: ReplicaSpec, replicas: int, project: Project) -> bool:
    """Whether Envoy sends requests to exactly `replicas` healthy replicas of `spec`, with these settings, as final version.

    Takes milliseconds.
    """
    endpoints = gateway.endpoints_by_model(project).get(spec.model, [])
    if len(endpoints) != replicas or not all(steps.serves_as(e, spec, project.settings) for e in endpoints):
        return False
    if gateway.previous_replicas(project, spec.model):
        return False
    healthy = admin.healthy_endpoints(project, spec.model)
    return healthy == {e.address for e in endpoints} and envoy_process.is_ready(project)


def _no_journal(facts: dict[str, Any]) -> None:
    """Records nothing."""


def roll_out(
    spec: ReplicaSpec,
    replicas: int,
    project: Project,
    runner: Runner,
    report: Report,
    config: RolloutConfig = WITHOUT_TRIAL,
    record_step: RecordStep = _no_journal,
    is_final: bool = True,
) -> Rollout:
    """Makes `replicas` replicas of `spec` serve its model, in place of what serves it now.

    Replicas of `spec` that were started with other settings are replaced too. Safe to run again after a kill at any moment.
    When the new replicas do not become ready, the previous version keeps serving.

    Args:
        config: whether there is a trial first; only where another version serves to compare with.
        record_step: receives the measurements of each step of a trial.
        is_final: False where the caller has more to do before the new version is final: the previous replicas stay recorded
            until `gateway.finalize`, and serve again when this process is killed.

    Raises:
        Busy: another roll-out of the same model is running.
        SettingsError: the gateway runs with another value of `access`.
        ServiceError: the new replicas do not become ready; with the last lines of their log.
        PortTaken: another program holds one of Envoy's ports.
        RolloutAborted: the new version left its bounds while it was monitored; the previous version keeps serving.
        DamagedFile: `models.json` is not JSON; nothing was started or stopped.
    """
    address = gateway.address(project.settings, spec.model)
    if is_serving(spec, replicas, project):
        return Rollout(spec, gateway.endpoints_by_model(project)[spec.model], address, changed=False)
    gateway.require_same_access(project)
    context = RolloutContext(spec.model, project, runner, report)
    with rollout_lock(project, spec.model):
        envoy_process.start(project)
        _clean_up(context)
        before = context.endpoints("main")
        kept = _reusable(context, spec, replicas, before)
        is_new = all(endpoint.spec != spec for endpoint in before)
        trial = _trial(context, spec, before, config, record_step) if is_new and config.bake_seconds else None
        try:
            passed = _run_trial(trial, replicas) if trial else []
            new = [endpoint.in_pool("main") for endpoint in passed]
            new += start_replicas(context, spec, replicas - len(kept) - len(new))
            removed = _replace(context, [*kept, *new], new, before, trial if config.strategy == "rolling" else None)
        except BaseException:
            _undo(context)
            raise
        if is_final:
            context.finalize()
        steps.stop(context, removed)
    replaced = tuple(sorted({e.version for e in removed} - {spec.version}))
    return Rollout(spec, [*kept, *new], address, changed=True, replaced=replaced)


def scale(model: str, replicas: int, project: Project, runner: Runner, report: Report) -> Rollout:
    """Changes the number of replicas of the version that serves now.

    Raises:
        ServiceError: nothing serves `model`; and the errors of `roll_out`.
    """
    endpoints = [endpoint for endpoint in gateway.endpoints_by_model(project).get(model, []) if endpoint.pool == "main"]
    if not endpoints:
        known = near_miss(model, gateway.endpoints_by_model(project))
        raise ServiceError(f"no replica serves {model!r}; {known}", hint=f"headrace run {model}")
    return roll_out(endpoints[-1].spec, replicas, project, runner, report)


def remove(model: str, project: Project, runner: Runner, report: Report) -> list[Replica]:
    """Removes a model from the gateway and stops its replicas, which are returned. Does nothing when it is not served."""
    context = RolloutContext(model, project, runner, report)
    with rollout_lock(project, model):
        removed = context.endpoints()
        remove_from_pool(context, removed)
        steps.stop(context, removed)
        return [*removed, *stop_orphaned(context)]


def restore_released(context: RolloutContext) -> None:
    """Cleans up after a killed roll-out: stops canaries and shadows and restores the previous version. Does not `finalize`.

    Raises:
        ServiceError: the previous version cannot be started; the current one keeps serving.
    """
    steps.stop_trials(context)
    restore_previous(context)
    stop_orphaned(context)


def stop_orphaned(context: RolloutContext) -> list[Replica]:
    """Stops the replicas that the gateway does not record, and returns them."""
    known = {endpoint.id for endpoint in context.endpoints()}
    orphaned = [replica for replica in context.runner.list(context.model) if replica.id not in known]
    steps.stop_all(orphaned, context.settings, lambda replica: context.runner)
    return orphaned


def _clean_up(context: RolloutContext) -> None:
    """A previous version that cannot be started does not prevent a new one."""
    try:
        restore_released(context)
    except ServiceError as error:
        context.report(f"the previous version cannot be restored: {error.message}")
        stop_orphaned(context)
    context.finalize()


def _undo(context: RolloutContext) -> None:
    """A previous version that cannot be started at this moment stays recorded: the watchdog tries again."""
    steps.stop_trials(context)
    try:
        restore_previous(context)
    except ServiceError as error:
        context.report(f"the previous version cannot be restored: {error.message}")
    else:
        context.finalize()


def _trial(
    context: RolloutContext, spec: ReplicaSpec, before: Sequence[Replica], config: RolloutConfig, record_step: RecordStep
) -> Trial | None:
    """None where no healthy replica serves that a new version could be compared with."""
    healthy = admin.healthy_endpoints(context.project, context.model, "main")
    if not any(endpoint.address in healthy for endpoint in before):
        return None
    return Trial(context, spec, versions(before), config, record_step)


def _reusable(context: RolloutContext, spec: ReplicaSpec, wanted: int, before: Sequence[Replica]) -> list[Replica]:
    """Returns the healthy replicas that serve exactly this spec already, at most `wanted`."""
    healthy = admin.healthy_endpoints(context.project, context.model, "main")
    return [e for e in before if steps.serves_as(e, spec, context.settings) and e.address in healthy][:wanted]


def _run_trial(trial: Trial, replicas: int) -> list[Replica]:
    """Returns the canaries that passed, which can go live as they are; shadows cannot."""
    if trial.config.strategy == "canary":
        return run_canary(trial, replicas)
    if trial.config.strategy == "shadow":
        run_shadow(trial, replicas)
    return []


def _replace(
    context: RolloutContext, after: Sequence[Replica], new: Sequence[Replica], before: Sequence[Replica], trial: Trial | None
) -> list[Replica]:
    """Adds `new`, removes what is not in `after`, monitors if there is a trial, and returns the removed replicas.

    They keep running without requests, so that they serve again at once when the new version fails.
    """
    kept = {endpoint.id for endpoint in after}
    removed = [endpoint for endpoint in before if endpoint.id not in kept]
    champion = pool_snapshot(context, "main", before) if trial else None
    is_new = any(old.spec != added.spec for old in before for added in new)
    add_to_pool(context, new, before if is_new else None)
    context.split_traffic(Traffic())
    remove_from_pool(context, [*removed, *context.endpoints("canary")])
    if trial and champion:
        began, answers = pool_snapshot(context, "main", new), compared_answers(context, new, before, with_past=True)
        monitor(
            trial,
            f"version {trial.spec.version} live",
            "main",
            lambda: pool_snapshot(context, "main", new).since(began),
            lambda: champion,
            answers,
        )
    return removed
