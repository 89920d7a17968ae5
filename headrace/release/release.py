"""The steps of a release that act on the world, each safe to run again, and what a release says at its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from headrace.data.versions import DataVersion
from headrace.errors import AwaitsApproval, Busy, ModelRefused, RolledBack, UsageError
from headrace.evaluation.gate import Verdict
from headrace.files import read_cached_json, read_json, write_json
from headrace.pipeline.evaluate import decide
from headrace.plugins import custom_sources
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal, up_to_date
from headrace.release.history import in_force, when_taken_back, why_taken_back
from headrace.release.journal import Entry
from headrace.serving.access import audit
from headrace.serving.gateway import gateway
from headrace.settings import Settings
from headrace.tracking import provenance, registry
from headrace.tracking.registry import Version

APPROVAL = "approval"


class Candidate(BaseModel):
    """A registered version, the gate's verdict on it, and the version that is to serve now."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    version: Version
    verdict: Verdict
    chosen: Version | None
    """The candidate when it may serve, else the champion, else nothing."""
    awaits_approval: bool = False
    taken_back: Entry | None = None
    """The journal's line by which the candidate was taken back, if that still stands."""


@contextmanager
def release_lock(recipe: str, project: Project) -> Iterator[None]:
    """Holds the right to release `recipe`; a killed holder loses it at once.

    Raises:
        Busy: another process holds it.
    """
    project.locks.mkdir(parents=True, exist_ok=True)
    holder = _holder(recipe, project)
    lock = FileLock(project.locks / f"release-{recipe}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _busy(recipe, read_cached_json(holder) or {}) from None
    try:
        write_json(holder, {"pid": os.getpid(), "since": time.strftime("%H:%M:%S")})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def require_no_other(recipe: str, project: Project) -> None:
    """
    Raises:
        Busy: a process that is not this one releases `recipe`.
    """
    known = read_cached_json(_holder(recipe, project)) or {}
    if known.get("pid") == os.getpid():
        return
    try:
        with FileLock(project.locks / f"release-{recipe}.lock", timeout=0):
            return
    except Timeout:
        raise _busy(recipe, known) from None


def _busy(recipe: str, holder: dict[str, Any]) -> Busy:
    return Busy(
        f"{recipe} is being released by process {holder.get('pid', '?')} since {holder.get('since', '?')}",
        hint="wait until it is done (headrace status), or stop that process; then run the same command",
    )


def _holder(recipe: str, project: Project) -> Path:
    """Who holds the lock; written when the release began."""
    return project.locks / f"release-{recipe}.json"


def identity_of(recipe: Recipe, version: DataVersion, project: Project) -> dict[str, str]:
    """What a model version says of itself."""
    validation = read_json(project.artifacts(recipe.name) / "validation.json") or {}
    return {
        "data_md5": version.md5,
        "data_rows": str(version.rows),
        "git_commit": provenance.git_commit(project, custom_sources(recipe.custom_classes, project.root)),
        "lock_sha256": provenance.lock_hash(project),
        "recipe_sha256": provenance.sha256(project.recipes / f"{recipe.name}.yaml"),
        "validation": f"{validation.get('passed')} of {validation.get('total')} expectations",
    }


def judge_candidate(recipe: Recipe, candidate: Version, project: Project, force: bool = False) -> Candidate:
    """The gate's verdict, kept on the version and, for a refusal, in the journal.

    A version that was taken back is not chosen again until recipe or data make another one, unless by `force`.
    """
    champion = registry.champion(recipe.name, project)
    verdict = decide(recipe, project, champion)
    is_champion = champion is not None and champion.version == candidate.version
    if not is_champion and not verdict.same_model:
        registry.set_alias(candidate, registry.CHALLENGER, project)
    registry.set_tags(
        candidate,
        {"gate": "passed" if verdict.passed else "refused", "gate_reasons": "; ".join(verdict.reasons)[:4000]},
        project,
    )
    awaits = verdict.passed and not is_champion and recipe.gate.approval == "manual" and not _is_approved(candidate, project)
    if not verdict.passed or awaits:
        _record_once(project, "refused" if not verdict.passed else "awaiting-approval", candidate, verdict)
        return Candidate(version=candidate, verdict=verdict, chosen=champion, awaits_approval=awaits)
    taken_back = None if force else when_taken_back(journal.entries(project, recipe.name), candidate.version)
    if taken_back is not None:
        return Candidate(version=candidate, verdict=verdict, chosen=champion, taken_back=taken_back)
    # A candidate with the champion's own bytes is no news: the champion goes on.
    return Candidate(version=candidate, verdict=verdict, chosen=champion if verdict.same_model else candidate)


def approve(reference: str, project: Project, by: str) -> Version:
    """Notes a person's approval on a version; the next release of the recipe rolls it out."""
    version = registry.get(reference, project)
    if registry.CHAMPION in version.aliases:
        raise UsageError(f"{version.name} is the champion already", hint=f"headrace history {version.model}")
    registry.set_tags(version, {APPROVAL: "approved", "approved_by": by}, project)
    journal.record(project, "approved", version.model, version.version, {"by": by, **registry.evidence(version)})
    audit.record(project, "approve", {"version": version.name, "by": by})
    return version


def promote(chosen: Version, project: Project) -> None:
    """Moves the alias `champion` to the version that now serves."""
    registry.set_alias(chosen, registry.CHAMPION, project)
    registry.drop_alias(chosen.model, registry.CHALLENGER, project)


def conclude(
    recipe: Recipe, candidate: Candidate, serving: dict[str, Any], project: Project, settings: Settings
) -> dict[str, Any]:
    """Writes the journal, last of all, and gives the facts of the release in force. From its line on nothing is taken back.

    Args:
        serving: how the chosen version serves: bento, image, replicas.

    Raises:
        ModelRefused: the gate refused the candidate; the champion, if any, serves on.
        AwaitsApproval: the candidate needs a person.
        RolledBack: the candidate was taken back, and nothing has changed since.
    """
    chosen = candidate.chosen
    if chosen is not None:
        kept = {**_evidence_of(chosen, candidate, recipe, project), **serving}
        before = in_force(journal.entries(project, recipe.name))
        if before is None or before.version != chosen.version or _served(before.facts) != _served(kept):
            journal.record(project, "released", recipe.name, chosen.version, kept)
            audit.record(project, "release", {"model": recipe.name, "version": chosen.version})
        gateway.settle(project, settings, recipe.name)
    holder = _holder(recipe.name, project)
    up_to_date.remember(recipe, project, settings, holder.stat().st_mtime_ns if holder.exists() else 0)
    if not candidate.verdict.passed:
        raise refusal(recipe.name, candidate.version.version, candidate.verdict.reasons, chosen.version if chosen else None)
    if candidate.awaits_approval:
        raise awaiting(candidate.version, chosen)
    if candidate.taken_back is not None:
        raise still_taken_back(candidate.version, candidate.taken_back, chosen)
    return outcome(recipe.name, project) or {}


def refusal(model: str, version: str, reasons: list[str], serving: str | None) -> ModelRefused:
    """The error that a refused candidate ends in."""
    goes_on = f"{model}@{serving} goes on serving" if serving else "nothing serves yet"
    return ModelRefused(
        f"the gate refused {model}@{version}; {goes_on}\n" + "\n".join(f"- {reason}" for reason in reasons),
        hint=f"improve the model or the data, or change gate in recipes/{model}.yaml",
    )


def awaiting(version: Version, serving: Version | None) -> AwaitsApproval:
    """What a release says that waits for a person."""
    goes_on = f"{serving.name} goes on serving" if serving else "nothing serves yet"
    return AwaitsApproval(
        f"{version.name} passed the gate and waits for a person; {goes_on}",
        hint=f"review it in MLflow, then: headrace approve {version.name} && headrace run {version.model}",
    )


def still_taken_back(version: Version, line: Entry, serving: Version | None) -> RolledBack:
    """What a release says whose candidate was taken back and is the same still."""
    goes_on = f"{serving.name} goes on serving" if serving else "nothing serves"
    return RolledBack(
        f"{version.name} was taken back at {line.at} ({why_taken_back(line)}), and nothing has changed since; {goes_on}",
        hint=f"change the recipe or the data; or roll it out all the same: headrace run {version.model} --force",
    )


def outcome(recipe: str, project: Project) -> dict[str, Any] | None:
    """The facts of the release in force, from the journal; None before the first."""
    released = in_force(journal.entries(project, recipe))
    return None if released is None else {"model": recipe, "version": released.version, "at": released.at, **released.facts}


def standing(recipe: str, project: Project) -> dict[str, Any] | None:
    """The facts in force when the journal's last word on `recipe` was final; None when a release has more to do.

    Raises:
        ModelRefused: the last word was a refusal, and repeating the same work would repeat it.
    """
    newest, released = journal.last(project, recipe), in_force(journal.entries(project, recipe))
    if newest is not None and newest.event == "refused":
        raise refusal(recipe, newest.version, newest.facts["verdict"]["reasons"], released.version if released else None)
    return outcome(recipe, project) if newest is not None and newest.event == "released" else None


def _evidence_of(chosen: Version, candidate: Candidate, recipe: Recipe, project: Project) -> dict[str, Any]:
    """On what the chosen version was released: this release's findings, or those of the release that chose it."""
    if chosen.version == candidate.version.version and not candidate.verdict.same_model:
        return {**registry.evidence(chosen), "verdict": candidate.verdict.to_dict(), **training_facts(recipe, project)}
    earlier = [e for e in journal.entries(project, recipe.name) if e.event == "released" and e.version == chosen.version]
    verdict = {"verdict": candidate.verdict.to_dict(), **training_facts(recipe, project)}
    return {**verdict, **(earlier[-1].facts if earlier else registry.evidence(chosen))}


def training_facts(recipe: Recipe, project: Project) -> dict[str, Any]:
    """Epochs, rows and metrics, from the stages' own files."""
    artifacts = project.artifacts(recipe.name)
    return {
        "training": read_json(artifacts / "train" / "summary.json"),
        "metrics": read_json(artifacts / "evaluation" / "metrics.json"),
    }


def _is_approved(version: Version, project: Project) -> bool:
    return registry.tag(version, APPROVAL, project) == "approved"


def _record_once(project: Project, event: journal.Event, version: Version, verdict: Verdict) -> None:
    """A verdict that is the journal's last word already is not said twice."""
    before = journal.last(project, version.model)
    if before is None or (before.event, before.version) != (event, version.version):
        journal.record(
            project, event, version.model, version.version, {**registry.evidence(version), "verdict": verdict.to_dict()}
        )


def _served(facts: dict[str, Any]) -> tuple[Any, ...]:
    return facts.get("bento"), facts.get("image"), facts.get("runner"), facts.get("replicas")
