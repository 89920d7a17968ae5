"""Back to a version that served before, in seconds: no training, no gate, no Prefect."""

from __future__ import annotations

from typing import Any

from headrace.console import Report
from headrace.errors import HeadraceError, ServiceError, UsageError, near_miss
from headrace.project import Project
from headrace.release import history, journal, recovery
from headrace.release.journal import Entry
from headrace.release.release import release_lock
from headrace.serving.access import audit
from headrace.settings import Settings
from headrace.tracking import registry


def roll_back(
    model: str,
    to: str | None,
    why: str,
    by: str,
    project: Project,
    settings: Settings,
    report: Report,
    rebuild: bool = False,
) -> dict[str, Any]:
    """Lets an earlier version serve again, as it did then, and gives the facts that the journal keeps of it.

    Safe to run again after a kill: the journal's line comes last. The version that goes is not rolled out again until recipe or
    data change.

    Args:
        to: a version, as `2` or `digits@2`; by default the one that served before.
        why: kept in the journal.
        by: who wants it; kept too.
        rebuild: packages the version anew, with the serving code as it is now.

    Raises:
        UsageError: there is no such version, or none before.
        ServiceError: its bento or image is gone, or its replicas do not become ready; what served serves on.
        Busy: a release of the model is under way.
    """
    from headrace.serving.replicas.replica import ReplicaSpec
    from headrace.serving.rollout.rolling import roll_out, runner_for

    with release_lock(model, project):
        recovery.end(model, project, settings, report, recovery.HOUSEKEEPING_SECONDS)
        entries = journal.entries(project, model)
        now, target = _from_and_to(model, to, entries, project)
        facts = {name: value for name, value in target.facts.items() if name != "rolled_back"}
        placed = settings.model_copy(update={"on": facts["on"]})
        facts |= _packaged(target, project, placed, report) if rebuild else _require_packaged(target, project, placed)
        spec = ReplicaSpec(model, target.version, facts["bento"], facts["image"], facts["threads"])
        roll_out(spec, facts["replicas"], project, settings, runner_for(project, settings, facts["on"]), report)
        registry.move_champion(model, target.version, project)
        told = {"from": now.version, "why": why, "by": by}
        audit.record(project, "rollback", {"model": model, "to": target.version, **told})
        journal.record(project, "rolled-back", model, target.version, {**facts, "rolled_back": told})
    return {"model": model, "version": target.version, **facts, "rolled_back": told}


def _from_and_to(model: str, to: str | None, entries: list[Entry], project: Project) -> tuple[Entry, Entry]:
    """What is in force, and what is to be."""
    now, served = history.in_force(entries), history.served(entries)
    if now is None:
        known = history.production(journal.entries(project))
        raise UsageError(f"{model!r} was never released; {near_miss(model, known)}", hint="headrace history lists the releases")
    if to is None:
        target = history.before(entries)
        if target is None:
            raise UsageError(
                f"no version of {model!r} served before {now.version}"
                + (", but for those taken back" if len(served) > 1 else ""),
                hint=f"headrace history {model}; name one: headrace rollback {model} --to VERSION",
            )
        return now, target
    wanted = to.removeprefix(f"{model}@").removeprefix("v")
    if wanted not in served:
        raise UsageError(f"{model}@{wanted} never served; {near_miss(wanted, served)}", hint=f"headrace history {model}")
    if wanted == now.version:
        raise UsageError(f"{model}@{wanted} is in force already", hint="headrace up brings it back where it does not serve")
    return now, served[wanted]


def _require_packaged(target: Entry, project: Project, settings: Settings) -> dict[str, Any]:
    """
    Raises:
        ServiceError: what would serve is gone from this machine; with how it is built again.
    """
    from headrace.serving.packaging import find_bento

    bento, image = target.facts["bento"], target.facts["image"]
    hint = f"build it again, with the serving code of today: headrace rollback {target.model} --to {target.version} --rebuild"
    if settings.on == "docker":
        from headrace.serving.packaging.docker import Docker

        if not Docker.connect(settings).inspect("image", image):
            raise ServiceError(f"the image {image} is gone", where=f"{target.model}@{target.version}", hint=hint)
        return {}
    try:
        find_bento(project, bento)
    except HeadraceError:
        raise ServiceError(f"the bento {bento} is gone", where=str(project.bentoml_home), hint=hint) from None
    return {}


def _packaged(target: Entry, project: Project, settings: Settings, report: Report) -> dict[str, Any]:
    from headrace.release.deploy import package_version

    version = registry.get(f"{target.model}@{target.version}", project)
    return package_version(version, project, settings, report).model_dump()
