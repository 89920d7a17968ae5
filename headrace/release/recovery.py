"""Recovers from a release that was killed during its roll-out: a trial, or a version that serves and was not recorded."""

from __future__ import annotations

from headrace.console import Report
from headrace.errors import ServiceError
from headrace.project import Project
from headrace.release import history, journal
from headrace.release.lock import require_no_other_release
from headrace.serving.gateway import gateway
from headrace.serving.gateway.model_route import ModelRoute, versions
from headrace.serving.replicas import runners
from headrace.serving.rollout import rolling
from headrace.serving.rollout.context import RolloutContext, rollout_lock
from headrace.tracking import registry

REPAIR_SECONDS = 130.0
"""A release waits this long for a repair of the watchdog to end."""


def is_interrupted(model: str, project: Project) -> bool:
    """Whether a version of the model is on trial, or serves and is not recorded: its release is running, or was killed."""
    found = gateway.read_routes(project).get(model)
    return found is not None and bool(found.previous or any(endpoint.pool != "main" for endpoint in found.endpoints))


def roll_back_interrupted_release(model: str, project: Project, report: Report, wait_seconds: float = 0.0) -> None:
    """Serves the version that was released last again, and records that in the journal. Does nothing without an interruption.

    Safe to run again after a kill at any instant: the previous replicas are forgotten last.

    Args:
        wait_seconds: how long to wait for another roll-out of the model to end.

    Raises:
        Busy: another process releases the model, or rolls it out.
        RegistryError: MLflow's database cannot be written.
    """
    if not is_interrupted(model, project):
        return
    require_no_other_release(model, project)  # fails at once, not after the wait
    with rollout_lock(project, model, wait_seconds):
        require_no_other_release(model, project)  # one that begins now waits for the same lock
        found = gateway.read_routes(project).get(model)
        if found is None:
            return
        place = (found.previous or found.endpoints)[0].runner
        site = RolloutContext(model, project, runners.runner_for(project, place), report)
        _undo(site, found)


def _undo(site: RolloutContext, found: ModelRoute) -> None:
    model, project = site.model, site.project
    released = history.in_force(journal.entries(project, model))
    serving = {endpoint.spec for endpoint in found.pool("main")}
    if found.previous and released is not None and serving == {history.released_spec(released)}:
        rolling.stop_orphaned(site)
    else:
        _record(site, found)
        try:
            rolling.restore_released(site)
        except ServiceError as error:  # the current version keeps serving, and the watchdog tries again
            site.report(f"{model} cannot be rolled back: {error.message}")
            return
    if released is not None and found.previous:
        registry.move_champion(model, released.version, project)
    site.finalize()


def _record(site: RolloutContext, found: ModelRoute) -> None:
    """Writes the journal's entry, before the roll-back removes what it describes; only once, however often that is killed."""
    model, project = site.model, site.project
    if found.previous:
        known = {endpoint.spec for endpoint in found.previous}
        left = [endpoint for endpoint in found.pool("main") if endpoint.spec not in known]
    else:
        left = [endpoint for endpoint in found.endpoints if endpoint.pool != "main"]
    if not left:
        return
    version, serving = left[0].version, versions(found.previous or found.pool("main"))
    facts = {
        "pool": left[0].pool,
        "bento": left[0].spec.bento_tag,
        "image": left[0].spec.image,
        "serving": serving,
        "left": [endpoint.id for endpoint in left],
        "reason": f"its release was interrupted; {model}@{serving} serves",
    }
    before = journal.last(project, model)
    if before is None or (before.event, before.facts) != ("rollout-abandoned", facts):
        journal.record(project, "rollout-abandoned", model, version, facts)
    site.report(f"{model}@{version}: {facts['reason']}")
