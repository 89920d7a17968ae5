"""What a release that was killed left: a trial that nobody watches, a version that serves and was never released."""

from __future__ import annotations

from headrace.console import Report
from headrace.errors import ServiceError
from headrace.project import Project
from headrace.release import deploy, history, journal
from headrace.release.release import require_no_other
from headrace.services import probes
from headrace.serving.gateway import gateway
from headrace.serving.gateway.clusters import Served, versions
from headrace.serving.rollout import rolling, steps
from headrace.serving.rollout.steps import Site
from headrace.settings import Settings
from headrace.tracking import registry

HOUSEKEEPING_SECONDS = 130.0
"""A release waits so long for the keeper, whose chores end sooner."""


def end(model: str, project: Project, settings: Settings, report: Report, wait_seconds: float = 0.0) -> None:
    """Lets what was released last serve again, alone, and tells the journal. Does nothing where nothing was left.

    Safe to run again after a kill at any instant: what served before is forgotten last.

    Args:
        wait_seconds: for another roll-out of the model to end.

    Raises:
        Busy: another process releases the model, or rolls it out.
        RegistryError: MLflow's database cannot be written.
    """
    if model not in probes.unfinished(project):
        return
    require_no_other(model, project)  # told at once, not after the wait
    with steps.alone(project, model, wait_seconds):
        require_no_other(model, project)  # one that begins now waits where this one is
        found = gateway.served(project).get(model)
        if found is None:
            return
        place = (found.predecessors or found.endpoints)[0].runner
        site = Site(model, project, settings, steps.runner_for(project, settings, place), report)
        _undo(site, found)


def _undo(site: Site, found: Served) -> None:
    model, project = site.model, site.project
    released = history.in_force(journal.entries(project, model))
    serving = {steps.spec_of(endpoint, model) for endpoint in found.pool("main")}
    if found.predecessors and released is not None and serving == {deploy.released_spec(released)}:
        rolling.stop_unknown(site)
    else:
        _tell(site, found)
        try:
            rolling.take_back(site)
        except ServiceError as error:  # what serves now serves on, and this is tried again
            site.report(f"{model} cannot go back: {error.message}")
            return
    if released is not None and found.predecessors:
        registry.move_champion(model, released.version, project)
    site.settle()


def _tell(site: Site, found: Served) -> None:
    """First, since afterwards nothing is left to tell of; once, however often the rest is killed."""
    model, project = site.model, site.project
    if found.predecessors:
        known = {steps.spec_of(endpoint, model) for endpoint in found.predecessors}
        left = [endpoint for endpoint in found.pool("main") if steps.spec_of(endpoint, model) not in known]
    else:
        left = [endpoint for endpoint in found.endpoints if endpoint.pool != "main"]
    if not left:
        return
    version, serving = left[0].version, versions(found.predecessors or found.pool("main"))
    facts = {
        "pool": left[0].pool,
        "bento": left[0].bento_tag,
        "image": left[0].image,
        "serving": serving,
        "left": [endpoint.replica for endpoint in left],
        "said": f"its release ended before it was done; {model}@{serving} serves",
    }
    before = journal.last(project, model)
    if before is None or (before.event, before.facts) != ("rollout-abandoned", facts):
        journal.record(project, "rollout-abandoned", model, version, facts)
    site.report(f"{model}@{version}: {facts['said']}")
