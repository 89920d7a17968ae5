"""Trains a registered version again, from its own commit, data and recipe, and compares the served files byte for byte."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from headrace.console import Report
from headrace.data.restore import restore_version
from headrace.errors import HeadraceError, NotReproduced, UsageError
from headrace.files import read_cached_json, read_json
from headrace.pipeline.stages import ERROR_FILE
from headrace.plugins import custom_sources
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.task_types.lookup import task_type_of
from headrace.tracking import artifact, provenance, registry
from headrace.tracking.registry import Version

STAGES = ("prepare", "train", "export", "evaluate")


class Reproduction(BaseModel):
    """A version trained again, compared with the registered one."""

    model_config = ConfigDict(frozen=True)
    version: str
    """For example `digits@3`."""
    code: str
    """Where the code came from: a commit, or the working tree."""
    data_md5: str
    device: str
    identical: bool
    """Whether every served file, with its weights, has the same bytes."""
    content_sha256: str
    content_sha256_now: str
    largest_difference: float | None
    """Between the two models' answers on the test rows; None where current code cannot run the older task type."""
    metrics: dict[str, float | None]
    metrics_now: dict[str, float | None]


def reproduce(reference: str, project: Project, report: Report) -> Reproduction:
    """Trains `reference` (for example `digits@3`) again in a separate folder; the project does not change.

    Raises:
        UsageError: the version does not exist, or its environment or its uncommitted code no longer does.
        DataError: its data is gone.
        NotReproduced: the weights differ.
    """
    version = registry.get(reference, project)
    _require_environment(version, project)
    folder = project.state / "reproductions" / f"{version.model}-{version.version}-{os.getpid()}"
    try:
        code = _extract_code(version, project, folder)
        report(f"code of {code}")
        restore_version(version.model, version.identity["data_md5"], project, folder / "data" / version.model)
        report(f"data {version.identity['data_md5']}")
        for stage in STAGES:
            report(stage)
            _run_stage(stage, version.model, folder, from_folder=code != WORKING_TREE)
        found = _compare(version, Project(folder), project, code)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not found.identical:
        raise _not_reproduced(found)
    return found


WORKING_TREE = "the working tree"


def _require_environment(version: Version, project: Project) -> None:
    then, now = version.identity.get("lock_sha256", ""), provenance.lock_hash(project)
    if then != now:
        commit = version.identity.get("git_commit", "none").removesuffix("-dirty")
        raise UsageError(
            f"{version.name} was trained with another requirements.lock (sha256 {then[:12]}…, now {now[:12]}…)",
            where="requirements.lock",
            hint=f"in a clone of the project: git checkout {commit} && make setup, then the same command there",
        )


def _extract_code(version: Version, project: Project, folder: Path) -> str:
    """Copies code and recipe of the version into `folder`, and returns where they come from."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commit = version.identity.get("git_commit", "none")
    if commit != "none" and not commit.endswith("-dirty"):
        _extract_commit(commit, project, folder)
        return f"commit {commit[:12]}"
    recipe_file = project.recipes / f"{version.model}.yaml"
    if provenance.sha256(recipe_file) != version.identity.get("recipe_sha256"):
        raise UsageError(
            f"{version.name} was trained from a recipe that was never committed and has changed since",
            where=f"recipes/{version.model}.yaml",
            hint="undo the change; and commit recipes before a release, so that every version can be trained again",
        )
    recipe = load_recipe(version.model, project)
    (folder / "recipes").mkdir()
    for path in [recipe_file, project.root / "dvc.yaml", *custom_sources(recipe.custom_classes, project.root)]:
        place = folder / path.resolve().relative_to(project.root.resolve())
        shutil.copytree(path, place) if path.is_dir() else shutil.copyfile(path, place)
    return WORKING_TREE


def _extract_commit(commit: str, project: Project, folder: Path) -> None:
    archive = subprocess.run(
        ["git", "-C", str(project.root), "archive", "--format=tar", commit, "--", "."], capture_output=True, check=False
    )
    if archive.returncode:
        raise UsageError(
            f"git does not have commit {commit}: {archive.stderr.decode(errors='replace').strip()[:200]}",
            where=str(project.root),
            hint="git fetch --all --unshallow, then the same command",
        )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)


def _run_stage(stage: str, model: str, folder: Path, from_folder: bool) -> None:
    """Runs one stage in a process of its own, with the command in `folder`'s dvc.yaml: its code may be older than this one."""
    error_file = folder / "error.json"
    # Settings of this project are left out: older code knows other names, and the run is not to be logged to its MLflow.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment = {**kept, "HEADRACE_ROOT": str(folder), ERROR_FILE: str(error_file)}
    if from_folder:
        environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(_command(stage, model, folder), cwd=folder, env=environment, check=False)
    if done.returncode:
        left = read_cached_json(error_file)
        raise (
            HeadraceError.from_dict(left)
            if left
            else HeadraceError(f"the stage {stage} failed with exit code {done.returncode}")
        )


def _command(stage: str, model: str, folder: Path) -> list[str]:
    """The command of a stage, by this environment's Python.

    Raises:
        HeadraceError: `folder`'s dvc.yaml has no such stage.
    """
    import yaml

    path = folder / "dvc.yaml"
    try:
        command = str(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"][stage]["do"]["cmd"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise HeadraceError(f"dvc.yaml of the version has no stage {stage!r}: {error!r}", where=str(path)) from None
    program, *arguments = shlex.split(command.replace("${key}", model))
    return [sys.executable if program == "python" else program, *arguments]


def _compare(version: Version, again: Project, project: Project, code: str) -> Reproduction:
    artifacts = again.artifacts(version.model)
    then, now = (artifact.content_hash(folder) for folder in (version.folder, artifacts / "export"))
    return Reproduction(
        version=version.name,
        code=code,
        data_md5=version.identity["data_md5"],
        device=str((read_json(artifacts / "train" / "summary.json") or {}).get("device", "?")),
        content_sha256=then,
        content_sha256_now=now,
        identical=then == now,
        largest_difference=0.0 if then == now else _largest_difference(version, again),
        metrics=_metrics_of(version, project),
        metrics_now=read_json(artifacts / "evaluation" / "metrics.json") or {},
    )


def _largest_difference(version: Version, again: Project) -> float | None:
    """Between the answers of both models on the test rows; None where current code cannot read the recipe or its classes."""
    import pandas as pd

    artifacts = again.artifacts(version.model)
    try:
        recipe: Recipe = load_recipe(version.model, again, translate_renamed=True)
    except HeadraceError:
        return None
    test = pd.read_parquet(artifacts / "prepared" / "test.parquet")
    task_type = task_type_of(recipe.task)
    then, now = (task_type.answers(folder, test, recipe) for folder in (version.folder, artifacts / "export"))
    return float(np.abs(then - now).max()) if then.shape == now.shape else float("inf")


def _metrics_of(version: Version, project: Project) -> dict[str, float | None]:
    """The test metrics of the version's run in MLflow."""
    from headrace.tracking.runs import client, registry_errors

    with registry_errors(project):
        logged = client(project).get_run(version.run_id).data.metrics
    return {name.removeprefix("test_"): value for name, value in logged.items() if name.startswith("test_")}


def _not_reproduced(found: Reproduction) -> NotReproduced:
    largest = found.largest_difference
    answers = "" if largest is None else f"; answers on the test rows differ by at most {largest:.3g}"
    return NotReproduced(
        f"{found.version} trained again on {found.device} differs: served files sha256 {found.content_sha256_now[:12]}…, "
        f"registered {found.content_sha256[:12]}…{answers}",
        where=found.code,
        hint="train on the same kind of device as then (headrace trace says which run); some GPU kernels have no fixed order",
    )
