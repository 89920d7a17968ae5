"""Model: rows to weights, weights to a graph, a graph to a judged version."""

from __future__ import annotations

from prefect import task

from headrace.data.versions import DataVersion
from headrace.pipeline.dvc import StageResult, reproduce
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release.release import Candidate, identity_of, judge_candidate
from headrace.tracking import registry
from headrace.tracking.registry import Version
from tasks.settings import HOUR, PLAIN
from tasks.telling import report, step, told


@task(name="prepare", timeout_seconds=HOUR, **PLAIN)
def prepare(recipe: Recipe, project: Project) -> StageResult:
    """Splits and schema."""
    step("prepare")
    return told(reproduce("prepare", recipe, project))


@task(name="train", timeout_seconds=24 * HOUR, tags=["train"], **PLAIN)
def train(recipe: Recipe, project: Project) -> StageResult:
    """Weights; goes on from the last checkpoint when an earlier run was killed."""
    step("train", f"{recipe.model.name}, at most {recipe.train.epochs} epochs")
    return told(reproduce("train", recipe, project))


@task(name="export", timeout_seconds=HOUR, **PLAIN)
def export(recipe: Recipe, project: Project) -> StageResult:
    """The graph that is served, held against torch."""
    step("export", "to ONNX, held against torch")
    return told(reproduce("export", recipe, project))


@task(name="evaluate", timeout_seconds=HOUR, **PLAIN)
def evaluate(recipe: Recipe, project: Project) -> StageResult:
    """Metrics and pictures on the test rows."""
    step("evaluate", "on the test rows")
    return told(reproduce("evaluate", recipe, project))


@task(name="register", timeout_seconds=HOUR, **PLAIN)
def register(recipe: Recipe, version: DataVersion, project: Project) -> Version:
    """A version in MLflow's registry."""
    step("register", "in MLflow")
    registered = registry.register(recipe, project, identity_of(recipe, version, project))
    report(f"{registered.name}, run {registered.run_id}")
    return registered


@task(name="judge", timeout_seconds=HOUR, **PLAIN)
def judge(recipe: Recipe, candidate: Version, project: Project, force: bool = False) -> Candidate:
    """The gate."""
    step("judge", "thresholds, then the champion on the same test rows")
    judged = judge_candidate(recipe, candidate, project, force)
    for reason in judged.verdict.reasons:
        report(reason)
    return judged
