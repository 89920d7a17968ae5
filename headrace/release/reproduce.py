"""Trains a registered version again, from its own commit, data and recipe, and compares the served files byte for byte."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from headrace import console
from headrace.console import Report
from headrace.errors import HeadraceError, NotReproduced, UsageError
from headrace.files import read_cached_json, read_json
from headrace.pipeline.stages import ERROR_FILE, IMPORT
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release import lookup
from headrace.release.extract import WORKING_TREE, write_sources
from headrace.task_types.lookup import task_type_for
from headrace.tracking import artifact, provenance
from headrace.tracking.registry import Version

STAGES = ("prepare", "train", "export", "evaluate")


class Reproduction(BaseModel):
    """A version trained again, compared with the registered one."""

    model_config = ConfigDict(frozen=True)
    version: str
    """For example `digits@3`."""
    code: str
    """Where the code came from: a commit, the copy kept with the version, or both; of older versions the working tree."""
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
    version = lookup.find(reference, project).version
    with trained_again(version, project, report) as (again, code):
        found = _compare(version, again, project, code)
    if not found.identical:
        raise _not_reproduced(found)
    return found


@contextmanager
def trained_again(version: Version, project: Project, report: Report) -> Iterator[tuple[Project, str]]:
    """Trains and exports a version again in a separate folder, which exists until the end of the block; gives it, and where
    its code came from.

    Raises:
        UsageError: its environment or its uncommitted code no longer exists.
        DataError: its data is gone.
    """
    _require_environment(version, project)
    folder = project.state / "reproductions" / f"{version.model}-{version.version}-{os.getpid()}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        code = write_sources(version, project, folder)
        report(f"code of {code}")
        report(f"data {version.identity['data_md5']}")
        for stage in _stages_of(version):
            report(stage)
            _run_stage(stage, version.model, folder, from_folder=code != WORKING_TREE)
        yield Project(folder), code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stages_of(version: Version) -> tuple[str, ...]:
    """The stages that make a version; of one that others trained, the import alone."""
    return (IMPORT,) if "imported_sha256" in version.identity else STAGES


def _require_environment(version: Version, project: Project) -> None:
    then, now = version.identity.get("lock_sha256", ""), provenance.lock_hash(project)
    if then != now and not project.is_clone:
        raise UsageError(
            f"{version.name} was trained with another Headrace or another requirements.lock "
            f"(sha256 {then[:12]}…, now {now[:12]}…)",
            where="requirements.lock",
            hint=f"install the Headrace and the packages of then: {version.name} was trained with Headrace "
            f"{version.identity.get('headrace', '?')}, and git has requirements.lock if it was committed",
        )
    if then != now:
        raise UsageError(
            f"{version.name} was trained with another requirements.lock (sha256 {then[:12]}…, now {now[:12]}…)",
            where="requirements.lock",
            hint=f"{console.command_name()} trace {version.name} --extract FOLDER writes its code, lock file and data; "
            "make setup installs the environment there",
        )


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
    program, *arguments = shlex.split(command.replace("${key}", model).replace("${item}", model))
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
    if recipe.imported is not None:
        return None
    test = pd.read_parquet(artifacts / "prepared" / "test.parquet")
    task_type = task_type_for(recipe)
    then, now = (task_type.answers(folder, test, recipe) for folder in (version.folder, artifacts / "export"))
    return float(np.abs(then - now).max()) if then.shape == now.shape else float("inf")


def _metrics_of(version: Version, project: Project) -> dict[str, float | None]:
    """The test metrics of the version's run in MLflow; none when the run was deleted."""
    from headrace.tracking.runs import client, exists, registry_errors

    if not exists(version.run_id, project):
        return {}
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
