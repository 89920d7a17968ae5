"""Decides whether a candidate replaces the version in production: the gate, a person's approval, earlier rollbacks."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from headrace.console import Report
from headrace.errors import HeadraceError, UsageError
from headrace.evaluation.gate import Comparison, Verdict, align_classes, check_gate, compare, compare_rows
from headrace.files import read_json
from headrace.pipeline.evaluate import answers_for
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION
from headrace.release import history, journal
from headrace.release.journal import Entry
from headrace.runtime.contract import Contract
from headrace.serving.access import audit
from headrace.task_types.lookup import task_type_of
from headrace.tracking import registry
from headrace.tracking.artifact import content_hash
from headrace.tracking.registry import Version

APPROVAL = "approval"
Result = Literal["promote", "keep", "refused", "awaiting-approval", "rolled-back"]


class Decision(BaseModel):
    """What is to be done with a candidate, and why."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    candidate: Version
    verdict: Verdict
    """The gate's findings."""
    result: Result
    """`promote` puts the candidate into production. `keep` releases the champion again, because the candidate has the same
    bytes. With the others the release stops: the gate refused the candidate, a person has to approve it, or it was rolled
    back earlier and nothing has changed since."""
    champion: Version | None = None
    """The version in production, if the registry still has it."""
    in_production: str | None = None
    """The number of the version in production, from the journal."""
    rolled_back: Entry | None = None
    """The journal's entry of the rollback."""

    @property
    def stops(self) -> bool:
        """Whether the release ends with this decision, and production stays as it is."""
        return self.result not in ("promote", "keep")

    @property
    def chosen(self) -> Version:
        """The version to serve, for a release that continues: the candidate, or the champion with the same bytes."""
        return self.champion if self.result == "keep" and self.champion is not None else self.candidate


def decide_promotion(recipe: Recipe, candidate: Version, project: Project, report: Report, force: bool = False) -> Decision:
    """Compares `candidate` with the gate and with the version in production, and decides what becomes of it.

    The verdict is stored as tags of the version, and a refusal in the journal. The alias `challenger` names the candidate until
    it serves or another candidate takes the alias.

    Args:
        report: gets a line when the alias `champion` had to be corrected.
        force: also promotes a version that was rolled back.

    Raises:
        HeadraceError: the champion takes other inputs than this recipe's data has.
        RegistryError: the champion's files are gone, or MLflow's database cannot be written.
    """
    entries = journal.entries(project, recipe.name)
    released = history.in_force(entries)
    in_production = released.version if released else None
    champion = find_champion(recipe.name, in_production, project, report)
    verdict = judge(recipe, champion, project)
    is_champion = in_production == candidate.version
    if not is_champion and not verdict.same_model:
        registry.set_alias(candidate, registry.CHALLENGER, project)
    registry.set_tags(
        candidate,
        {"gate": "passed" if verdict.passed else "refused", "gate_reasons": "; ".join(verdict.reasons)[:4000]},
        project,
    )
    rolled_back = None if force else history.when_rolled_back(entries, candidate.version)
    result: Result
    if not verdict.passed:
        result = "refused"
    elif not is_champion and recipe.gate.approval == "manual" and not _is_approved(candidate, project):
        result = "awaiting-approval"
    elif rolled_back is not None:
        result = "rolled-back"
    else:
        result = "keep" if verdict.same_model and champion is not None else "promote"
    if result in ("refused", "awaiting-approval"):
        _record_once(project, result, candidate, verdict)
    return Decision(
        candidate=candidate,
        verdict=verdict,
        result=result,
        champion=champion,
        in_production=in_production,
        rolled_back=rolled_back if result == "rolled-back" else None,
    )


def find_champion(model: str, in_production: str | None, project: Project, report: Report) -> Version | None:
    """The version in production, with its alias `champion` corrected where somebody moved or deleted it in MLflow.

    The journal says what is in production, not the alias: a person can move an alias, and that serves nothing.

    Returns:
        None before the first release, and when the version was deleted from the registry.

    Raises:
        RegistryError: the files of the version are gone, or MLflow's database cannot be written.
    """
    if in_production is None:
        return None
    champion = registry.find_version(model, in_production, project)
    named = registry.aliased(model, registry.CHAMPION, project)
    if champion is None:
        report(f"{model}@{in_production} is in production and was deleted from MLflow: nothing to compare with")
        if named is not None:
            registry.drop_alias(model, registry.CHAMPION, project)
    elif named != in_production:
        registry.set_alias(champion, registry.CHAMPION, project)
        found = f"pointed to {model}@{named}" if named else "was missing"
        report(f"MLflow's alias champion {found}; {model}@{in_production} is in production, so it points there again")
    return champion


def judge(recipe: Recipe, champion: Version | None, project: Project) -> Verdict:
    """Applies the gate: thresholds, then the paired comparison with the champion on the same test rows.

    Raises:
        HeadraceError: the champion takes other inputs than this recipe's data has.
    """
    artifacts = project.artifacts(recipe.name)
    metrics: dict[str, float] = read_json(artifacts / "evaluation" / "metrics.json")
    same = champion is not None and content_hash(champion.folder) == content_hash(artifacts / "export")
    comparison: Comparison | None = None
    if champion is not None and not same and recipe.gate.beat_champion is not None:
        comparison = _compare(recipe, champion, project)
    return check_gate(recipe.gate, recipe.task_type.metrics, metrics, comparison, same)


def _compare(recipe: Recipe, champion: Version, project: Project) -> Comparison:
    artifacts = project.artifacts(recipe.name)
    beat, task_type = recipe.gate.beat_champion, task_type_of(recipe.task)
    assert beat is not None
    with np.load(artifacts / "evaluation" / "predictions.npz") as saved:
        y_true, candidate = saved["y_true"], saved["outputs"]
    try:
        theirs = answers_for(artifacts / "prepared" / "test.parquet", champion.folder, recipe)
    except Exception as error:  # ONNX Runtime raises plain exceptions for another type or shape
        raise HeadraceError(
            f"the champion {champion.name} cannot answer for these rows ({error}): its columns differ",
            where=f"recipes/{recipe.name}.yaml",
            hint="remove gate.beat_champion for this one release, or give the recipe another name",
        ) from error
    metric, better, seed = beat.metric, recipe.task_type.metrics[beat.metric], recipe.data.split.seed
    if metric not in CLASSIFICATION | REGRESSION:
        scores = [task_type.row_scores(metric, y_true, outputs) for outputs in (candidate, theirs)]
        return compare_rows(*scores, beat=beat, better=better, seed=seed)
    labels, known = (Contract.read(folder / "contract.json").labels for folder in (artifacts / "export", champion.folder))
    if labels is not None and known is not None:
        theirs = align_classes(theirs, known, labels)
    return compare(y_true, candidate, theirs, beat=beat, better=better, seed=seed)


def approve(reference: str, project: Project, by: str) -> Version:
    """Stores a person's approval of a version; the next release of the recipe rolls it out.

    Raises:
        UsageError: the version does not exist, or it is in production already.
    """
    version = registry.get(reference, project)
    released = history.in_force(journal.entries(project, version.model))
    if released is not None and released.version == version.version:
        raise UsageError(f"{version.name} is the champion already", hint=f"headrace history {version.model}")
    registry.set_tags(version, {APPROVAL: "approved", "approved_by": by}, project)
    journal.record(project, "approved", version.model, version.version, {"by": by, **registry.evidence(version)})
    audit.record(project, "approve", {"version": version.name, "by": by})
    return version


def _is_approved(version: Version, project: Project) -> bool:
    return registry.tag(version, APPROVAL, project) == "approved"


def _record_once(project: Project, event: Literal["refused", "awaiting-approval"], version: Version, verdict: Verdict) -> None:
    """Writes a verdict to the journal, unless it is the newest entry already."""
    newest = journal.last(project, version.model)
    if newest is None or (newest.event, newest.version) != (event, version.version):
        journal.record(
            project, event, version.model, version.version, {**registry.evidence(version), "verdict": verdict.to_dict()}
        )
