"""How a release ends: the alias and the journal's entry of a version that serves, or the error that stops the release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from headrace.errors import AwaitsApproval, HeadraceError, ModelRefused, Rejected, RolledBack
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal, lock, refreshing, up_to_date
from headrace.release.decision import Decision, training_facts
from headrace.release.history import in_force, why_rolled_back
from headrace.release.journal import Entry
from headrace.release.reviews import Review
from headrace.serving.access import audit
from headrace.serving.gateway import gateway
from headrace.tracking import registry
from headrace.tracking.registry import Version


def promote(version: Version, project: Project) -> None:
    """Moves the alias `champion` to the version that serves now, if MLflow has it; `challenger` is removed from it."""
    registry.move_champion(version.model, version.version, project)
    if registry.aliased(version.model, registry.CHALLENGER, project) == version.version:
        registry.drop_alias(version.model, registry.CHALLENGER, project)


def record_release(recipe: Recipe, decision: Decision, serving: dict[str, Any], project: Project) -> dict[str, Any]:
    """Writes the release to the journal, unless it is there already, and returns its facts.

    From the journal's entry on the version is final: the replicas that served before are no longer kept for a way back.

    Args:
        serving: how the version serves: bento, image, replicas, threads, runner.
    """
    chosen = decision.chosen
    facts = {**_evidence(recipe, decision, project), **serving}
    facts.pop("forced", None)  # of an earlier release of the same version
    if decision.forced:
        facts["forced"] = decision.forced
    released = in_force(journal.entries(project, recipe.name))
    if released is None or released.version != chosen.version or _serving(released.facts) != _serving(facts):
        journal.record(project, "released", recipe.name, chosen.version, {**facts, "by": audit.user()})
        audit.record(project, "release", {"model": recipe.name, "version": chosen.version})
    gateway.finalize(project, recipe.name)
    if decision.training is None:  # after an approval, what is on disk may be newer than what was released
        up_to_date.remember(recipe, project, lock.began_ns(recipe.name, project))
        refreshing.forget(recipe.name, project)
    return current_release(recipe.name, project) or {}


def stop_release(recipe: Recipe, decision: Decision, project: Project) -> NoReturn:
    """Ends a release whose candidate does not go into production. The next run of the same recipe on the same data is short.

    Raises:
        ModelRefused: the gate refused the candidate.
        AwaitsApproval: a person has to approve the candidate.
        Rejected: a person has rejected it, and nothing has changed since.
        RolledBack: the candidate was rolled back earlier, and nothing has changed since.
    """
    up_to_date.remember(recipe, project, lock.began_ns(recipe.name, project))
    refreshing.forget(recipe.name, project)
    raise why_stopped(decision)


def why_stopped(decision: Decision) -> HeadraceError:
    """The error for a decision that stops a release."""
    candidate, serving = decision.candidate, decision.in_production
    if decision.result == "awaiting-approval":
        return awaiting_approval(candidate, serving, decision.ignored, decision.standing.progress)
    if decision.result == "rejected" and decision.review is not None:
        return rejected(candidate, decision.review, serving)
    if decision.rolled_back is not None:
        return still_rolled_back(candidate, decision.rolled_back, serving)
    return refusal(candidate.model, candidate.version, decision.verdict.reasons, serving)


def refusal(model: str, version: str, reasons: list[str], serving: str | None) -> ModelRefused:
    """The error for a version that the gate refused; `serving` is the version in production."""
    return ModelRefused(
        "\n".join([f"the gate refused {model}@{version}; {_keeps_serving(model, serving)}", *(f"- {one}" for one in reasons)]),
        hint=f"improve the model or the data, or change gate in recipes/{model}.yaml",
    )


def refused_after_approval(decision: Decision) -> ModelRefused:
    """The error for a version that people approved, and that does not pass the gate as it is now."""
    candidate, serving = decision.candidate, decision.in_production
    message = f"{candidate.name} was approved, and recipe or production have changed since it was judged"
    return ModelRefused(
        "\n".join(
            [f"{message}; {_keeps_serving(candidate.model, serving)}", *(f"- {one}" for one in decision.verdict.reasons)]
        ),
        hint=f"headrace run {candidate.model} judges it again; its approvals count as long as its files are the same",
    )


def awaiting_approval(version: Version, serving: str | None, ignored: Sequence[str] = (), progress: str = "") -> AwaitsApproval:
    """The error for a version that passed the gate and needs a person's approval; `ignored` is what does not count as one."""
    waits = f"waits for approval ({progress})" if progress else "waits for approval"
    message = f"{version.name} passed the gate and {waits}; {_keeps_serving(version.model, serving)}"
    return AwaitsApproval(
        "\n".join([message, *(f"- {one}" for one in ignored)]),
        hint=f"review it in MLflow; then approve it in Prefect (headrace open prefect), or: headrace approve {version.name}",
    )


def rejected(version: Version, review: Review, serving: str | None) -> Rejected:
    """The error for a version that a person rejected."""
    return Rejected(
        f"{version.name} was rejected {review.sentence}; {_keeps_serving(version.model, serving)}",
        hint=f"change the recipe or the data; or lift the rejection: headrace approve {version.name}",
    )


def still_rolled_back(version: Version, rollback: Entry, serving: str | None) -> RolledBack:
    """The error for a version that was rolled back, while nothing has changed since."""
    return RolledBack(
        f"{version.name} was rolled back at {rollback.at} ({why_rolled_back(rollback)}), and nothing has changed since; "
        f"{_keeps_serving(version.model, serving)}",
        hint=f"change the recipe or the data; or roll it out all the same: headrace run {version.model} --force",
    )


def _keeps_serving(model: str, version: str | None) -> str:
    return f"{model}@{version} keeps serving" if version else "nothing serves yet"


def current_release(recipe: str, project: Project) -> dict[str, Any] | None:
    """The facts of the release in production, from the journal; None before the first."""
    released = in_force(journal.entries(project, recipe))
    return None if released is None else {"model": recipe, "version": released.version, "at": released.at, **released.facts}


def last_final_release(recipe: str, project: Project) -> dict[str, Any] | None:
    """The facts of the release in production, if it is the newest entry of the journal; None when there is work left.

    Raises:
        ModelRefused: the newest entry is a refusal, and the same work would end in it again.
    """
    newest, released = journal.last(project, recipe), in_force(journal.entries(project, recipe))
    if newest is not None and newest.event == "refused":
        raise refusal(recipe, newest.version, newest.facts["verdict"]["reasons"], released.version if released else None)
    return current_release(recipe, project) if newest is not None and newest.event == "released" else None


def _evidence(recipe: Recipe, decision: Decision, project: Project) -> dict[str, Any]:
    """Why the version is in production: the findings of this release, or of the earlier one that chose the same version."""
    chosen = decision.chosen
    approval: dict[str, Any] = {"approval": decision.review.facts()} if decision.review else {}
    if len(approvals := decision.standing.approvals) > 1:
        approval |= {"approvals": [one.facts() for one in approvals]}
    made = decision.training or training_facts(recipe, project)
    found = {"verdict": decision.verdict.to_dict(), **made, **approval}
    if not decision.verdict.same_model:
        return {**registry.evidence(chosen), **found}
    entries = journal.entries(project, recipe.name)
    earlier = [entry for entry in entries if entry.event == "released" and entry.version == chosen.version]
    return {**found, **(earlier[-1].facts if earlier else registry.evidence(chosen))}


def _serving(facts: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(facts.get(name) for name in ("bento", "image", "image_digest", "runner", "replicas"))
