"""Rolls back to a version that served before, in seconds: without training, gate or Prefect."""

from __future__ import annotations

from typing import Any

from headrace.console import Report
from headrace.errors import ServiceError, UsageError, near_miss
from headrace.project import Project
from headrace.release import history, journal, recovery
from headrace.release.deploy import is_packaged, package_again, require_released_bytes
from headrace.release.journal import Entry
from headrace.release.lock import release_lock
from headrace.serving.access import audit
from headrace.tracking import registry


def roll_back(
    model: str,
    to: str | None,
    why: str,
    by: str,
    project: Project,
    report: Report,
    rebuild: bool = False,
) -> dict[str, Any]:
    """Serves an earlier version again, as it was released then, and returns the facts of the journal's new entry.

    Safe to run again after a kill: the journal's entry comes last. The version that is replaced is not rolled out again until
    the recipe or the data change.

    Args:
        to: a version, as `2` or `digits@2`; by default the one that served before.
        why: the reason, stored in the journal.
        by: the person, stored too.
        rebuild: packages the version again, with the current serving code.

    Raises:
        UsageError: the version does not exist, or none served before.
        ServiceError: its bento or image is gone, or its replicas did not become ready; the current version keeps serving.
        Busy: a release of the model is running.
    """
    from headrace.serving.replicas.replica import ReplicaSpec
    from headrace.serving.replicas.runners import runner_for
    from headrace.serving.rollout.rolling import roll_out

    with release_lock(model, project):
        recovery.roll_back_interrupted_release(model, project, report, recovery.REPAIR_SECONDS)
        entries = journal.entries(project, model)
        now, target = _from_and_to(model, to, entries, project)
        facts = {name: value for name, value in target.facts.items() if name != "rolled_back"}
        placed = project.settings.model_copy(update={"runner": facts["runner"]})
        if rebuild:
            version = registry.get(f"{model}@{target.version}", project)
            facts |= package_again(version, target, project.using(placed), report)
        else:
            _require_packaged(target, project.using(placed))
            require_released_bytes(target, project.using(placed))
        spec = ReplicaSpec(model, target.version, facts["bento"], facts["image"], facts["threads"])
        roll_out(spec, facts["replicas"], project, runner_for(project, facts["runner"]), report)
        registry.move_champion(model, target.version, project)
        rollback = {"from": now.version, "why": why, "by": by}
        audit.record(project, "rollback", {"model": model, "to": target.version, **rollback})
        journal.record(project, "rolled-back", model, target.version, {**facts, "rolled_back": rollback})
    return {"model": model, "version": target.version, **facts, "rolled_back": rollback}


def _from_and_to(model: str, to: str | None, entries: list[Entry], project: Project) -> tuple[Entry, Entry]:
    """The entries of the version in production and of the one to roll back to."""
    now, served = history.in_force(entries), history.served(entries)
    if now is None:
        known = history.production(journal.entries(project))
        raise UsageError(f"{model!r} was never released; {near_miss(model, known)}", hint="headrace history lists the releases")
    if to is None:
        target = history.before(entries)
        if target is None:
            raise UsageError(
                f"no version of {model!r} served before {now.version}"
                + (", except those that were rolled back" if len(served) > 1 else ""),
                hint=f"headrace history {model}; name one: headrace rollback {model} --to VERSION",
            )
        return now, target
    wanted = to.removeprefix(f"{model}@").removeprefix("v")
    if wanted not in served:
        raise UsageError(f"{model}@{wanted} never served; {near_miss(wanted, served)}", hint=f"headrace history {model}")
    if wanted == now.version:
        raise UsageError(f"{model}@{wanted} is in production already", hint="headrace up serves it again if it was stopped")
    return now, served[wanted]


def _require_packaged(target: Entry, project: Project) -> None:
    """Checks that the version can be served without building anything.

    Raises:
        ServiceError: its bento or image is gone from this machine; the hint says how to build it again.
    """
    if is_packaged(target, project):
        return
    image = target.facts["image"] if project.settings.runner == "docker" else None
    raise ServiceError(
        f"the image {image} is gone" if image else f"the bento {target.facts['bento']} is gone",
        where=f"{target.model}@{target.version}",
        hint=f"build it again, with the current serving code: headrace rollback {target.model} --to {target.version} --rebuild",
    )
