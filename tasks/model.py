"""Model: trains, exports, evaluates, registers a version and decides on its promotion."""

from __future__ import annotations

from prefect import task
from prefect.client.schemas.objects import State

from headrace.data.versions import DataVersion
from headrace.pipeline.dvc import StageResult, reproduce
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import history, journal
from headrace.release.decision import Decision, decide_promotion
from headrace.release.description import describe
from headrace.tracking import registry
from headrace.tracking.registry import Version
from tasks.reporting import report, report_result, step
from tasks.settings import HOUR, PLAIN


@task(name="prepare", timeout_seconds=HOUR, **PLAIN)
def prepare(recipe: Recipe, project: Project) -> StageResult | State[StageResult]:
    """Splits the rows and learns the schema from the training rows."""
    step("prepare")
    return report_result(reproduce("prepare", recipe, project))


@task(name="train", timeout_seconds=24 * HOUR, tags=["train"], **PLAIN)
def train(recipe: Recipe, project: Project) -> StageResult | State[StageResult]:
    """Trains; resumes from the last checkpoint when an earlier run was killed."""
    rounds = getattr(recipe.model, "rounds", None)  # of boosted trees
    most = f"{recipe.train.epochs} epochs" if rounds is None else f"{rounds} rounds"
    step("train", f"{recipe.model.name}, at most {most}")
    return report_result(reproduce("train", recipe, project))


@task(name="export", timeout_seconds=HOUR, **PLAIN)
def export(recipe: Recipe, project: Project) -> StageResult | State[StageResult]:
    """Exports the graph that is served, and compares its answers with those of torch."""
    step("export", "to ONNX, compared with torch")
    return report_result(reproduce("export", recipe, project))


@task(name="evaluate", timeout_seconds=HOUR, **PLAIN)
def evaluate(recipe: Recipe, project: Project) -> StageResult | State[StageResult]:
    """Computes metrics and plots on the test rows."""
    step("evaluate", "on the test rows")
    return report_result(reproduce("evaluate", recipe, project))


@task(name="register", timeout_seconds=HOUR, **PLAIN)
def register(recipe: Recipe, version: DataVersion, project: Project) -> Version:
    """Registers a version in MLflow."""
    step("register", "in MLflow")
    last = history.last_number(journal.entries(project, recipe.name))
    registered = registry.register_trained(recipe, version, project, last)
    report(f"{registered.name}, run {registered.run_id}")
    if uncommitted := registered.identity.get("uncommitted"):
        report(f"not committed: {uncommitted}; {registered.name} keeps a copy, and a commit would let others see it")
    return registered


@task(name="judge", timeout_seconds=HOUR, **PLAIN)
def judge(recipe: Recipe, candidate: Version, project: Project, force: bool = False, cause: str | None = None) -> Decision:
    """Decides whether the candidate replaces the version in production, and describes it in MLflow for people."""
    step("judge", "" if recipe.imported else "thresholds, then the champion on the same test rows")
    decision = decide_promotion(recipe, candidate, project, report, force)
    describe(recipe, decision, project, cause)
    for reason in decision.verdict.reasons:
        report(reason)
    return decision
