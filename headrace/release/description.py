"""What a reviewer reads in MLflow about a version: a description in Markdown, written when the gate has decided."""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from headrace.data import batch_drift
from headrace.errors import RegistryError
from headrace.evaluation.metrics import Evaluation
from headrace.files import read_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.recipe.task_types import Better
from headrace.release import journal, reviews, terms
from headrace.release.decision import Decision
from headrace.tracking import registry, runs
from headrace.tracking.registry import Version
from headrace.tracking.runs import client, registry_errors
from headrace.tracking.version_identity import SPLIT

LONGEST = 5000
"""Characters that MLflow keeps."""
MOST_PARTS, MOST_CHANGES, MOST_PICTURES, MOST_BATCHES = 8, 12, 12, 6
"""Parts of the test rows, fields of the recipe, pictures and batches that are listed."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of an experiment."""
CAUSE = "cause"
"""The tag of a version with the alarm that began its training."""
REVIEW = "**Review:**"
"""Begins the paragraph about the review, which is one line."""
ERROR_LEVEL = 0.05
"""Chance that any part is listed as worse although it is not."""


def describe(recipe: Recipe, decision: Decision, project: Project, cause: str | None = None) -> None:
    """Writes the description of a candidate, and that of its registered model, into MLflow.

    Args:
        cause: the alarm by which the release began; it is kept as a tag of the version.

    Raises:
        RegistryError: MLflow's database cannot be read or written.
    """
    candidate = decision.candidate
    if cause:
        registry.set_tags(candidate, {CAUSE: cause[:LONGEST]}, project)
    with registry_errors(project):
        store = client(project)
        store.update_model_version(candidate.model, candidate.version, description_of(recipe, decision, project))
        store.update_registered_model(candidate.model, description=model_description(recipe))
        if experiment := runs.experiment_of(candidate.run_id, project):
            store.set_experiment_tag(experiment, NOTE, f"The runs that train {recipe.name}. {model_description(recipe)}")


def model_description(recipe: Recipe) -> str:
    """What the model predicts and where it comes from, in Markdown."""
    targets = ", ".join(f"`{name}`" for name in recipe.data.targets)
    if recipe.imported is not None:
        return (
            f"{recipe.task.capitalize()} by a model that others trained, from `recipes/{recipe.name}.yaml`. The alias "
            "`champion` is the version in production, `challenger` the newest candidate. "
            f"`headrace history {recipe.name}` shows its releases."
        )
    return (
        f"{recipe.task.rpartition(':')[2].capitalize()} of {targets}, from `recipes/{recipe.name}.yaml` "
        f"(model `{recipe.model.name}`). The alias `champion` is the version in production, `challenger` the newest candidate. "
        f"`headrace history {recipe.name}` shows its releases."
    )


def stored(model: str, version: str, project: Project) -> str | None:
    """The description of a version in MLflow; None if there is none, or MLflow's database cannot be read."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(RegistryError, MlflowException), registry_errors(project):
        return client(project).get_model_version(model, version).description or None
    return None


def update_review(model: str, version: str, project: Project) -> None:
    """Brings the paragraph about the review in a version's description up to date, after a review or an expiry."""
    text = stored(model, version, project)
    paragraph = review_paragraph(model, version, project)
    if text is None or paragraph is None:
        return
    changed = re.sub(rf"(?m)^{re.escape(REVIEW)}.*$", lambda _: paragraph, text)
    if changed != text:
        with contextlib.suppress(RegistryError), registry_errors(project):
            client(project).update_model_version(model, version, changed[:LONGEST])


def review_paragraph(model: str, version: str, project: Project) -> str | None:
    """One line about the review of a version: how to review it, or what became of it; None if nobody was asked."""
    entries = journal.entries(project, model)
    newest = next((e for e in reversed(entries) if e.version == version and e.event in terms.DECIDING), None)
    if newest is None or newest.event in ("refused", "released"):
        return None
    name, candidate = f"{model}@{version}", reviews.candidate_of(entries, project)
    if newest.event == "expired":
        return f"{REVIEW} {name} expired: {newest.facts.get('why')}. `headrace run {model}` asks again."
    if candidate is None or candidate.entry.version != version:
        return f"{REVIEW} {name} was superseded by a newer candidate."
    found = candidate.standing
    people = "; ".join(one.sentence for one in found.approvals)
    if candidate.state == "rejected" and found.rejection:
        return f"{REVIEW} rejected {found.rejection.sentence}."
    if candidate.state == "approved":
        return f"{REVIEW} approved {people}."
    commands = " or ".join(f"`headrace {act} {name} --why '…'`" for act in ("approve", "reject"))
    progress = f" {found.progress}{f': {people}' if people else ''}." if found.progress else ""
    until = f", until {end:%Y-%m-%d %H:%M} UTC" if (end := terms.expiry(newest)) else ""
    return f"{REVIEW} it waits for a person{until}: {commands}, or the form in Prefect (`headrace open prefect`).{progress}"


def description_of(recipe: Recipe, decision: Decision, project: Project) -> str:
    """What the gate found, the metrics beside the champion's, what got worse, pictures, and what the version was made from."""
    candidate, champion = decision.candidate, decision.champion
    if champion is not None and champion.version == candidate.version:
        champion = None
    if recipe.imported is not None:
        return _description_of_import(decision, project)
    evaluation = Evaluation.from_dict(read_json(project.artifacts(recipe.name) / "evaluation" / "evaluation.json") or {})
    before = _evaluation_of(champion, project) if champion is not None else None
    cause = registry.tag(candidate, CAUSE, project)
    sections = [
        "\n".join(_summary(decision, evaluation)),
        review_paragraph(candidate.model, candidate.version, project) or "",
        f"**Trained again because of an alarm:** {cause}" if cause else "",
        "\n".join(_metrics(recipe, evaluation, champion, before)),
        "\n".join(["**Gate**", "", *(f"- {reason}" for reason in decision.verdict.reasons)]),
        "\n".join(_worse(recipe, evaluation, candidate, champion, before)),
        "\n".join(_origin(recipe, candidate, champion, project)),
        "\n".join(_pictures(candidate, project)),
    ]
    text = "\n\n".join(section for section in sections if section)
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rpartition("\n")[0] + "\n…"


def _description_of_import(decision: Decision, project: Project) -> str:
    """What was checked of a model that others trained, and where it comes from."""
    candidate, passed = decision.candidate, "passed the gate" if decision.verdict.passed else "was refused by the gate"
    found = candidate.identity
    names = {name: f"imported_{name}" for name in ("from", "revision", "sha256", "licence")}
    origin = [f"- {shown}: {found[name]}" for shown, name in names.items() if name in found]
    sections = [
        f"**{candidate.name}**, a model that others trained, {passed}.",
        review_paragraph(candidate.model, candidate.version, project) or "",
        "\n".join(["**Gate**", "", *(f"- {reason}" for reason in decision.verdict.reasons)]),
        "\n".join(["**Imported from**", "", *origin]),
    ]
    return "\n\n".join(section for section in sections if section)[:LONGEST]


def _summary(decision: Decision, evaluation: Evaluation) -> Iterator[str]:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(evaluation.metrics.items())[:4])
    passed = "passed the gate" if decision.verdict.passed else "was refused by the gate"
    yield f"**{decision.candidate.name}** {passed}: {shown} on {evaluation.rows:,} test rows."


def _metrics(recipe: Recipe, ours: Evaluation, champion: Version | None, before: Evaluation | None) -> Iterator[str]:
    if champion is None or before is None:
        return
    yield f"| metric | this version | {champion.name}, in production | |"
    yield "| --- | --- | --- | --- |"
    for name, better in recipe.task_type.metrics.items():
        if name in ours.metrics and name in before.metrics:
            change = ours.metrics[name] - before.metrics[name]
            word = "same" if not change else "better" if (change > 0) == (better == "higher") else "worse"
            yield f"| {name} | {ours.metrics[name]:.4g} | {before.metrics[name]:.4g} | {word} |"
    if ours.rows != before.rows:
        yield ""
        yield f"Each on its own test rows ({ours.rows:,} and {before.rows:,}); the gate compares both on the same rows."


def _worse(
    recipe: Recipe, ours: Evaluation, candidate: Version, champion: Version | None, before: Evaluation | None
) -> Iterator[str]:
    """Parts of the test rows whose score fell by more than chance explains."""
    if champion is None or before is None:
        return
    found = worse_parts(ours, before, recipe.task_type.metrics.get(ours.sliced_by or "", "lower"))
    same = candidate.tags.get(registry.PREFIX + SPLIT) == champion.tags.get(registry.PREFIX + SPLIT)
    if found:
        where = "the same test rows" if same else "the test rows of each version"
        yield f"**Worse than {champion.name}** on {where}, by more than chance explains:"
        yield ""
        yield from (f"- {line}" for line in found[:MOST_PARTS])
        if len(found) > MOST_PARTS:
            yield f"- and {len(found) - MOST_PARTS} more"
    elif ours.slices or ours.classes:
        yield f"No part of the test rows got worse than with {champion.name} by more than chance explains."


@dataclass(frozen=True)
class Part:
    """The score of some test rows: those of a class, or those that share a value of a column."""

    name: str
    metric: str
    value: float
    standard_error: float
    rows: int


def worse_parts(ours: Evaluation, before: Evaluation, better: Better = "lower") -> list[str]:
    """The classes and slices whose score is worse than `before` by more than chance explains, worst first.

    A part is compared by the difference of its scores in standard errors, as if its rows were drawn independently; the limit is
    that of a one-sided test at `ERROR_LEVEL`, divided among all parts (Bonferroni).

    Args:
        better: the direction of the metric `sliced_by`.
    """
    older = {part.name: part for part in _parts(before)}
    pairs = [(part, older[part.name]) for part in _parts(ours) if part.name in older]
    limit = NormalDist().inv_cdf(1 - ERROR_LEVEL / max(1, len(pairs)))
    found = []
    for part, past in pairs:
        error = math.hypot(part.standard_error, past.standard_error)
        is_higher_better = part.metric in ("recall", "accuracy") or (part.metric == ours.sliced_by and better == "higher")
        loss = past.value - part.value if is_higher_better else part.value - past.value
        if error > 0 and loss / error > limit:
            line = f"{part.name}: {part.metric} {part.value:.4g}, before {past.value:.4g} ({part.rows:,} rows)"
            found.append((loss / error, line))
    return [line for _, line in sorted(found, reverse=True)]


def _parts(evaluation: Evaluation) -> Iterator[Part]:
    for one in evaluation.classes:
        if one.recall is not None and one.support:
            error = _error_of_share(one.recall, one.support)
            yield Part(f"class {one.label}", "recall", one.recall, error, one.support)
    for found in evaluation.slices:
        name = f"{found.column} = {found.value}"
        if found.accuracy is not None:
            yield Part(name, "accuracy", found.accuracy, _error_of_share(found.accuracy, found.rows), found.rows)
        elif found.mae is not None and found.standard_error is not None:
            yield Part(name, "mae", found.mae, found.standard_error, found.rows)
        elif found.score is not None and found.standard_error is not None:
            yield Part(name, evaluation.sliced_by or "score", found.score, found.standard_error, found.rows)


def _error_of_share(share: float, rows: int) -> float:
    """The standard error of a share, with one row of each kind added: of few rows that all are right it would be 0."""
    smoothed = (share * rows + 1) / (rows + 2)
    return math.sqrt(smoothed * (1 - smoothed) / rows)


def _origin(recipe: Recipe, candidate: Version, champion: Version | None, project: Project) -> Iterator[str]:
    """Data, code and recipe, and how they differ from the champion's."""
    ours, theirs = candidate.identity, champion.identity if champion is not None else {}
    rows = int(ours.get("data_rows", 0))
    data = f"{rows:,} rows, version {ours.get('data_md5', '')[:12]}, {ours.get('validation', 'expectations unknown')} passed"
    if champion is not None and "data_rows" in theirs:
        same = theirs.get("data_md5") == ours.get("data_md5")
        change = rows - int(theirs["data_rows"])
        data += f"; the same as {champion.name}" if same else f"; {change:+,} rows since {champion.name}"
    code = f"commit {ours.get('git_commit', 'none')[:12]}"
    if uncommitted := ours.get("uncommitted"):
        code += f", not committed: {uncommitted}"
    yield "**Made from**"
    yield ""
    yield f"- data: {data}"
    if champion is not None:
        yield from (f"  - {line}" for line in _new_batches(recipe, candidate, champion, project))
    yield f"- code: {code}"
    if base := ours.get("base_from"):
        licence = f", licence {ours['base_licence']}" if "base_licence" in ours else ""
        yield f"- adapted from: {base}, sha256 {ours['base_sha256'][:12]}{licence}"
    if compression := ours.get("compression"):
        yield f"- compressed: {compression}"
    if champion is not None:
        changes = _recipe_changes(candidate, champion, project)
        yield f"- recipe, since {champion.name}: " + ("; ".join(changes) if changes else "unchanged")


def _new_batches(recipe: Recipe, candidate: Version, champion: Version, project: Project) -> Iterator[str]:
    """The batches that came since the champion, each with how its rows differ from those before it."""
    ours, theirs = (_data_files(version, project) for version in (candidate, champion))
    if ours is None or theirs is None:
        return
    new = [name for name, md5 in sorted(ours.items()) if theirs.get(name) != md5]
    for name in new[:MOST_BATCHES]:
        drift = batch_drift.kept_sentences(recipe, project, Path(name).stem)
        yield f"new batch `{name}`" + (f": {'; '.join(drift)}" if drift else "")
    if len(new) > MOST_BATCHES:
        yield f"and {len(new) - MOST_BATCHES} more new batches"
    if gone := sorted(theirs.keys() - ours.keys()):
        yield f"{len(gone)} batches are gone: {', '.join(gone[:MOST_BATCHES])}"


def _data_files(version: Version, project: Project) -> dict[str, str] | None:
    """The md5 of each file of data of a version; None where that is not known."""
    with contextlib.suppress(RegistryError):
        if found := registry.source_of(version, project):
            files: dict[str, str] = found.data["files"]
            return files
    return None


def _recipe_changes(candidate: Version, champion: Version, project: Project) -> list[str]:
    """Fields of the recipe that differ between two versions, for example `train.epochs: 6 (before 4)`."""
    import yaml

    texts = []
    for version in (candidate, champion):
        try:
            found = registry.source_of(version, project)
        except RegistryError:
            found = None
        if found is None:
            return ["not known, because the text of an older recipe is gone"]
        texts.append(dict(_flat(yaml.safe_load(found.recipe))))
    new, old = texts
    names = [name for name in {**old, **new} if new.get(name) != old.get(name)]
    lines = [f"`{name}`: {_shown(new.get(name))} (before {_shown(old.get(name))})" for name in names[:MOST_CHANGES]]
    return lines + ([f"{len(names) - MOST_CHANGES} more"] if len(names) > MOST_CHANGES else [])


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from _flat(value, f"{prefix}{name}.")
    else:
        yield prefix.removesuffix("."), tree


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _pictures(candidate: Version, project: Project) -> Iterator[str]:
    """Links to the run with its artifacts, and to the pictures of the evaluation."""
    experiment = runs.experiment_of(candidate.run_id, project)
    if experiment is None:
        return
    page = f"#/experiments/{experiment}/runs/{candidate.run_id}"
    with registry_errors(project):
        files = client(project).list_artifacts(candidate.run_id, "evaluation")
    names = [file.path for file in files if file.path.endswith(".png")]
    links = [f"[{Path(name).stem}]({page}/artifacts/{name})" for name in names[:MOST_PICTURES]]
    shown = f"**Pictures:** {', '.join(links)}; learning curves and all files" if links else "Learning curves and all files"
    yield f"{shown} are in [the run]({page})."


def _evaluation_of(version: Version, project: Project) -> Evaluation | None:
    """The evaluation that is stored with the version's run; None if the run is gone or an older Headrace wrote it."""
    with contextlib.suppress(RegistryError, OSError, ValueError), tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        with registry_errors(project):
            path = client(project).download_artifacts(version.run_id, "evaluation/evaluation.json", folder)
        return Evaluation.from_dict(read_json(Path(path)) or {})
    return None
