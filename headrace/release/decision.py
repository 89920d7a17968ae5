"""Decides whether a candidate replaces the version in production: the gate, a person's review, earlier rollbacks."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.compression.compress import UNCOMPRESSED, read_outcome
from headrace.compression.loss import check_loss, compare_with_original, groups_of
from headrace.console import Report
from headrace.errors import HeadraceError, RegistryError
from headrace.evaluation.error_budget import confidence_of
from headrace.evaluation.gate import Check, Comparison, Verdict, align_classes, check_gate, compare, compare_rows
from headrace.files import read_json
from headrace.importing.build import checks_of
from headrace.pipeline.evaluate import answers_for
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION
from headrace.release import held_out, history, journal, lookup, reviews, terms, up_to_date
from headrace.release.journal import Entry
from headrace.release.recheck import recheck
from headrace.release.reviews import NotWaiting, Review, Standing
from headrace.release.terms import Terms
from headrace.runtime.contract import Contract
from headrace.task_types.lookup import task_type_for
from headrace.tracking import registry
from headrace.tracking.artifact import IMPORT_FACTS, content_hash
from headrace.tracking.registry import Version

TRAINING_FACTS = ("training", "metrics", "test_rows")
Result = Literal["promote", "keep", "refused", "awaiting-approval", "rejected", "rolled-back"]


class Decision(BaseModel):
    """What is to be done with a candidate, and why."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    candidate: Version
    verdict: Verdict
    """The gate's findings."""
    result: Result
    """`promote` puts the candidate into production. `keep` releases the champion again, because the candidate has the same
    bytes. With the others the release stops: the gate refused the candidate, a person has to approve it or has rejected it,
    or it was rolled back earlier and nothing has changed since."""
    champion: Version | None = None
    """The version in production, if MLflow or its bento still has it."""
    in_production: str | None = None
    """The number of the version in production, from the journal."""
    rolled_back: Entry | None = None
    """The journal's entry of the rollback."""
    forced: str | None = None
    """The rollback that this decision overrules, in words."""
    standing: Standing = Standing((), 1, None)
    """The approvals and the rejection of the candidate that count."""
    training: dict[str, Any] | None = None
    """Epochs, rows and metrics of a candidate that waited, as the journal has them."""
    ignored: tuple[str, ...] = ()
    """Sentences about what looks like an approval and counts for nothing."""

    @property
    def review(self) -> Review | None:
        """The approval or rejection that decided."""
        return self.standing.review

    @property
    def stops(self) -> bool:
        """Whether the release ends with this decision, and production stays as it is."""
        return self.result not in ("promote", "keep")

    @property
    def waits(self) -> bool:
        """Whether a person has to approve the candidate."""
        return self.result == "awaiting-approval"

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
        force: also promotes a version that was rolled back. A rejection is lifted by an approval alone.

    Raises:
        HeadraceError: the champion takes other inputs than this recipe's data has.
        RegistryError: the champion's files are gone everywhere or have changed, or MLflow's database cannot be written.
    """
    reviews.expire_due(recipe.name, project)
    entries = journal.entries(project, recipe.name)
    released = history.in_force(entries)
    in_production = released.version if released else None
    champion = find_champion(released, recipe, project, report)
    if champion is not None and released is not None:
        lookup.require_recorded_files(champion, released)
    verdict = judge(recipe, candidate, champion, project)
    is_champion = in_production == candidate.version
    if not is_champion and not verdict.same_model:
        registry.set_alias(candidate, registry.CHALLENGER, project)
    registry.set_tags(
        candidate,
        {"gate": "passed" if verdict.passed else "refused", "gate_reasons": "; ".join(verdict.reasons)[:4000]},
        project,
    )
    rollback = _rollback_of(candidate, entries)
    rolled_back = None if force else rollback
    content = content_hash(candidate.folder)
    data = candidate.identity.get("data_md5")
    standing = reviews.standing(candidate.version, content, data, entries, project, recipe.gate.approvers)
    result: Result
    if not verdict.passed:
        result = "refused"
    elif not is_champion and standing.outcome == "rejected":
        result = "rejected"
    elif not is_champion and recipe.gate.approval == "manual" and not _is_approved(candidate, content, standing, entries):
        result = "awaiting-approval"
    elif rolled_back is not None:
        result = "rolled-back"
    else:
        result = "keep" if verdict.same_model and champion is not None else "promote"
    if result == "refused":
        _record_refusal(project, candidate, verdict)
    elif result in ("awaiting-approval", "rejected"):
        _record_waiting(recipe, project, candidate, verdict, entries)  # also a rejected one can be approved after all
    return Decision(
        candidate=candidate,
        verdict=verdict,
        result=result,
        champion=champion,
        in_production=in_production,
        rolled_back=rolled_back if result == "rolled-back" else None,
        forced=f"it was rolled back at {rollback.at} ({history.why_rolled_back(rollback)})" if rollback and force else None,
        standing=standing,
        ignored=tuple(reviews.ignored(candidate, content, entries, project)) if result == "awaiting-approval" else (),
    )


def take_approved(recipe: Recipe, number: str, project: Project) -> Decision:
    """The decision about a candidate that waited, by what was measured then, the approvals since, and what recipe and
    production are now. A refusal is written to the journal; the next run of the recipe judges the candidate again.

    Raises:
        NotWaiting: the version is not the candidate any more, or not enough people have approved it.
        RegistryError: its files are not those that were judged.
    """
    entries = journal.entries(project, recipe.name)
    found = reviews.candidate_of(entries, project)
    if found is None or found.entry.version != number or found.state != "approved":
        raise NotWaiting(f"{recipe.name}@{number} is not approved", hint="headrace approve lists what waits")
    candidate, facts, released = registry.get(found.name, project), found.entry.facts, history.in_force(entries)
    lookup.require_recorded_files(candidate, found.entry)
    in_production, judged = released.version if released else None, Verdict.from_dict(facts["verdict"])
    verdict = recheck(recipe, judged, facts.get("metrics") or {}, found.standing, in_production)
    if not verdict.passed:
        _record_refusal(project, candidate, verdict)
        up_to_date.forget(recipe, project)
    return Decision(
        candidate=candidate,
        verdict=verdict,
        result="promote" if verdict.passed else "refused",
        in_production=in_production,
        standing=found.standing,
        training={name: facts.get(name) for name in TRAINING_FACTS},
    )


def _is_approved(candidate: Version, content: str, standing: Standing, entries: list[Entry]) -> bool:
    if standing.outcome is not None or standing.approvals:
        return standing.outcome == "approved"
    return reviews.was_approved_unsigned(candidate.version, content, entries)


def find_champion(released: Entry | None, recipe: Recipe, project: Project, report: Report) -> Version | None:
    """The version in production, with its alias `champion` corrected where somebody moved or deleted it in MLflow.

    The journal says what is in production, not the alias: a person can move an alias, and that serves nothing. A version that
    was deleted from MLflow is read from its bento, so that the gate still compares with what serves.

    Args:
        released: the entry of `history.in_force`; None before the first release.

    Returns:
        None before the first release, and where the version is gone everywhere and the gate does not compare.

    Raises:
        RegistryError: the gate compares with the version, and it is gone from MLflow and from this machine; or MLflow's
            database cannot be written.
    """
    if released is None:
        return None
    model, name = recipe.name, f"{recipe.name}@{released.version}"
    found = lookup.find_in_production(released, project)
    named = registry.aliased(model, registry.CHAMPION, project)
    if found is None and recipe.gate.beat_champion is not None:
        raise RegistryError(
            f"{name} is in production, and neither MLflow nor a bento has its files: the gate cannot compare with it",
            where=f"recipes/{model}.yaml: gate.beat_champion",
            hint="restore mlruns/ or .headrace/bentoml from a backup, or remove gate.beat_champion for this one release",
        )
    if found is None or found.missing:
        source = "" if found is None else "; the comparison reads it from its bento"
        report(f"{name} is in production and {' and '.join(found.missing) if found else 'is gone from MLflow'}{source}")
        if named not in (None, released.version):
            registry.drop_alias(model, registry.CHAMPION, project)
    elif named != released.version:
        registry.set_alias(found.version, registry.CHAMPION, project)
        moved = f"pointed to {model}@{named}" if named else "was missing"
        report(f"MLflow's alias champion {moved}; {name} is in production, so it points there again")
    return found.version if found else None


def judge(recipe: Recipe, candidate: Version, champion: Version | None, project: Project) -> Verdict:
    """Applies the gate: thresholds, then the paired comparison with the champion on the same test rows.

    Raises:
        HeadraceError: the champion takes other inputs than this recipe's data has, or may have been trained on all test rows.
    """
    artifacts = project.artifacts(recipe.name)
    metrics: dict[str, float] = read_json(artifacts / "evaluation" / "metrics.json")
    same = champion is not None and content_hash(champion.folder) == content_hash(artifacts / "export")
    comparison: Comparison | None = None
    if champion is not None and not same and recipe.gate.beat_champion is not None:
        comparison = _compare(recipe, candidate, champion, project)
    if recipe.imported is not None:
        return _verdict_without_rows(read_json(artifacts / "export" / IMPORT_FACTS) or {}, same)
    rows = (read_json(artifacts / "evaluation" / "evaluation.json") or {}).get("rows")
    further, notes = _compression(recipe, project)
    return check_gate(recipe.gate, recipe.task_type.metrics, metrics, comparison, same, rows, further, notes)


def _compression(recipe: Recipe, project: Project) -> tuple[list[Check], list[str]]:
    """The requirement that compression loses no more than the recipe allows, on the test rows; and remarks."""
    export = project.artifacts(recipe.name) / "export"
    how = read_outcome(export)
    if recipe.compress is None or how is None:
        return [], []
    if not how.applied:
        return [], [f"compress: {how.sentence}"]
    y_true, ours = _saved_answers(recipe, project)
    original = answers_for(project.artifacts(recipe.name) / "prepared" / "test.parquet", export / UNCOMPRESSED, recipe)
    groups = groups_of(recipe, project, len(y_true))
    found = compare_with_original(recipe.compress, recipe, y_true, ours, original, groups)
    return [check_loss(found, how.method)], [f"compressed by {how.sentence}"]


def _saved_answers(recipe: Recipe, project: Project) -> tuple[NDArray[Any], NDArray[Any]]:
    """The true answers of the test rows and those of the candidate, as the stage `evaluate` wrote them."""
    with np.load(project.artifacts(recipe.name) / "evaluation" / "predictions.npz") as saved:
        return saved["y_true"], saved["outputs"]


def _verdict_without_rows(facts: dict[str, Any], same: bool) -> Verdict:
    """The gate's finding for a model that others trained: without test rows it compares nothing, and says what was checked."""
    reasons = ["there are no test rows: nothing was measured, and nothing was compared with the version in production"]
    if same:
        reasons.append("the candidate is identical to the champion")
    checked = [f"checked instead: {one}" for one in checks_of(facts)]
    return Verdict(passed=True, reasons=[*reasons, *checked], checks=[], same_model=same)


def _compare(recipe: Recipe, candidate: Version, champion: Version, project: Project) -> Comparison:
    artifacts = project.artifacts(recipe.name)
    beat, task_type = recipe.gate.beat_champion, task_type_for(recipe)
    assert beat is not None
    y_true, ours = _saved_answers(recipe, project)
    try:
        theirs = answers_for(artifacts / "prepared" / "test.parquet", champion.folder, recipe)
    except Exception as error:  # ONNX Runtime raises plain exceptions for another type or shape
        raise HeadraceError(
            f"the champion {champion.name} cannot answer for these rows ({error}): its columns differ",
            where=f"recipes/{recipe.name}.yaml",
            hint="remove gate.beat_champion for this one release, or give the recipe another name",
        ) from error
    rows = held_out.test_rows(recipe, candidate, champion, len(y_true), project)
    y_true, ours, theirs = (found[rows.unseen] for found in (y_true, ours, theirs))
    number = held_out.comparison_number(recipe, rows.test_set, candidate, champion, len(y_true), project)
    stated, unknown = beat.confidence, dict[str, Any]()
    beat = beat.model_copy(update={"confidence": confidence_of(number, stated)})
    metric, better, seed = beat.metric, recipe.task_type.metrics[beat.metric], recipe.data.split.seed
    if recipe.task_type.compared_by_row is not None or metric not in CLASSIFICATION | REGRESSION:
        theirs_contract, ours_contract = (Contract.read(at / "contract.json") for at in (champion.folder, artifacts / "export"))
        theirs = task_type.align(theirs, theirs_contract, ours_contract)
        scores = [task_type.comparison_scores(metric, y_true, outputs, recipe) for outputs in (ours, theirs)]
        found = compare_rows(*scores, beat=beat, better=better, seed=seed, groups=rows.groups)
    else:
        labels, known = (Contract.read(folder / "contract.json").labels for folder in (artifacts / "export", champion.folder))
        if labels is not None and known is not None:
            ours_named, theirs_named = ([_label_name(label) for label in found] for found in (labels, known))
            theirs = align_classes(theirs, theirs_named, ours_named)
            new = [index for index, name in enumerate(ours_named) if name not in theirs_named]
            unknown = {"unknown_labels": [ours_named[i] for i in new], "unknown_rows": int(np.isin(y_true, new).sum())}
        found = compare(y_true, ours, theirs, beat=beat, better=better, seed=seed, groups=rows.groups)
    counted = {"number": number, "budget": 1 - stated, "test_set": rows.test_set, "against": champion.version}
    return found.model_copy(update={**counted, **unknown, "left_out": int((~rows.unseen).sum())})


def _label_name(label: str | int) -> str:
    """The label as a text, the same one for 1, "1" and "1.0": a column becomes text, or fractional, by one new value."""
    found = re.fullmatch(r"(-?[0-9]+)\.0+", str(label))
    return found[1] if found else str(label)


def _rollback_of(candidate: Version, entries: list[Entry]) -> Entry | None:
    """The entry by which the candidate was rolled back, also under another number: it may have been deleted from MLflow."""
    wanted = tuple(candidate.identity.get(name) for name in ("content_sha256", "data_md5"))
    same = [e.version for e in entries if (e.facts.get("content_sha256"), e.facts.get("data_md5")) == wanted]
    found = (history.when_rolled_back(entries, version) for version in dict.fromkeys([candidate.version, *reversed(same)]))
    return next((entry for entry in found if entry is not None), None)


def _record_refusal(project: Project, version: Version, verdict: Verdict) -> None:
    """Writes a refusal to the journal, unless it is the newest entry already."""
    newest = journal.last(project, version.model)
    if newest is None or (newest.event, newest.version) != ("refused", version.version):
        facts = {**registry.evidence(version), "verdict": verdict.to_dict()}
        journal.record(project, "refused", version.model, version.version, facts)


def _record_waiting(recipe: Recipe, project: Project, version: Version, verdict: Verdict, entries: list[Entry]) -> None:
    """Writes to the journal that a candidate waits, unless it waits already, with the same files and under the same terms."""
    newest, asked, evidence = terms.newest_decision(entries), Terms.of(recipe.gate), registry.evidence(version)
    wanted = ("awaiting-approval", version.version, evidence["content_sha256"], asked)
    if newest is not None and wanted == (
        newest.event, newest.version, newest.facts.get("content_sha256"), Terms.recorded(newest)
    ):  # fmt: skip
        return
    made = training_facts(recipe, project)
    facts = {**evidence, "verdict": verdict.to_dict(), **asked.to_facts(), **made}
    journal.record(project, "awaiting-approval", version.model, version.version, facts)


def training_facts(recipe: Recipe, project: Project) -> dict[str, Any]:
    """Epochs, rows and metrics of the candidate, from the files of the stages."""
    artifacts = project.artifacts(recipe.name)
    if recipe.imported is not None:
        return {
            "training": None,
            "metrics": {},
            "test_rows": None,
            "imported": read_json(artifacts / "export" / IMPORT_FACTS),
        }
    return {
        "training": read_json(artifacts / "train" / "summary.json"),
        "metrics": read_json(artifacts / "evaluation" / "metrics.json"),
        "test_rows": (read_json(artifacts / "evaluation" / "evaluation.json") or {}).get("rows"),
    }
