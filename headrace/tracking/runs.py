"""Runs in MLflow: opened when training starts, logged in batches, found later by the hash of their weights."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError, RegistryError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.tracking.database import artifact_root, initialise_tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

FINGERPRINT = "headrace.fingerprint"
WEIGHTS = "headrace.weights_md5"
FOLDER_OF_WEIGHTS = "weights"
"""The folder of `model.pt` in the artifacts of a run whose recipe has `train.start: champion`."""
INTERRUPTED = "headrace.interrupted"
"""`true` for a run whose training was interrupted, until the same training continues or another one takes its place."""


@dataclass
class Run:
    """One training run."""

    id: str
    project: Project

    def log_history(self, rows: list[dict[str, float]]) -> None:
        """Logs rows of the learning curve, all in one call; each has `epoch` and metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(row["epoch"])) for row in rows for name, value in row.items() if name != "epoch"
        ]
        with registry_errors(self.project):
            for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
                client(self.project).log_batch(self.id, metrics[start : start + 1000])

    def epochs(self) -> set[int]:
        """Epochs that are logged already; empty unless the run continues after a kill."""
        with registry_errors(self.project):
            return {point.step for point in client(self.project).get_metric_history(self.id, "val_loss")}

    def fail(self) -> None:
        with registry_errors(self.project):
            client(self.project).set_terminated(self.id, "FAILED")

    def interrupt(self) -> None:
        """Marks the run as killed; the same training continues it later."""
        with registry_errors(self.project):
            client(self.project).set_tag(self.id, INTERRUPTED, "true")
            client(self.project).set_terminated(self.id, "KILLED")

    def finish(self, weights: Path) -> None:
        with registry_errors(self.project):
            client(self.project).set_tag(self.id, WEIGHTS, md5(weights))
            client(self.project).set_terminated(self.id)


@cache
def client(project: Project) -> MlflowClient:
    """The client of this process; its database is initialised."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow would sort a set of the variables that are read while it logs a model: other threads read some meanwhile.
    os.environ.setdefault("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is for results alone
    with registry_errors(project):
        initialise_tracking(project)
        import mlflow

        _quieten()
        uri = project.tracking_uri
        mlflow.set_tracking_uri(uri)
        return mlflow.MlflowClient(uri)


def _quieten() -> None:
    """MLflow logs errors with their traceback and warns of missing GPUs; Headrace prints its errors once, with a hint."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def open_run(recipe: Recipe, project: Project, fingerprint: str, tags: dict[str, str]) -> Run:
    """The run of an interrupted or killed training with the same fingerprint, else a new one with the recipe's parameters.

    Those with other fingerprints are closed: a recipe trains once at a time, and their checkpoint is overwritten.
    """
    store = client(project)
    is_open, is_interrupted = "attributes.status = 'RUNNING'", f"tags.`{INTERRUPTED}` = 'true'"
    same, other = (f"tags.`{FINGERPRINT}` {sign} '{fingerprint}' and" for sign in ("=", "!="))
    with registry_errors(project):
        found = _search(recipe.name, project, f"{same} {is_open}") or _search(recipe.name, project, f"{same} {is_interrupted}")
        while abandoned := _search(recipe.name, project, f"{other} {is_open}"):
            store.set_terminated(abandoned.info.run_id, "KILLED")
        while abandoned := _search(recipe.name, project, f"{other} {is_interrupted}"):
            store.set_tag(abandoned.info.run_id, INTERRUPTED, "false")
        if not found:
            return Run(_create(recipe, project, {FINGERPRINT: fingerprint, **tags}), project)
        if found.info.status != "RUNNING":
            store.set_tag(found.info.run_id, INTERRUPTED, "false")
            store.update_run(found.info.run_id, "RUNNING")
        return Run(found.info.run_id, project)


def run_of_training(recipe: Recipe, project: Project) -> Run:
    """The run of the weights and learning curves in the recipe's artifacts, as `run_of_weights`."""
    import csv

    folder = project.artifacts(recipe.name) / "train"
    with (folder / "curves.csv").open(newline="") as handle:
        history = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(handle)]
    return run_of_weights(recipe, project, folder / "model.pt", history)


def run_of_weights(recipe: Recipe, project: Project, weights: Path, history: list[dict[str, float]]) -> Run:
    """The run that trained these weights; a new one from the files when DVC had them in its cache and no run is known."""
    digest = md5(weights)
    with registry_errors(project):
        found = _search(recipe.name, project, f"tags.`{WEIGHTS}` = '{digest}'")
        if found:
            return Run(found.info.run_id, project)
        run = Run(_create(recipe, project, {"headrace.from_cache": "true"}), project)
    run.log_history(history)
    run.finish(weights)
    return run


def exists(run_id: str, project: Project) -> bool:
    """Whether MLflow has the run, and it was not deleted there.

    Raises:
        RegistryError: MLflow's database cannot be read.
    """
    return experiment_of(run_id, project) is not None


def experiment_of(run_id: str, project: Project) -> str | None:
    """The id of the experiment of a run; None when the run was deleted."""
    from mlflow.exceptions import MlflowException

    with registry_errors(project):
        try:
            info = client(project).get_run(run_id).info
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return str(info.experiment_id) if info.lifecycle_stage == "active" else None


def md5(path: Path) -> str:
    """The hash by which DVC names the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def registry_errors(project: Project) -> Iterator[None]:
    """Turns MLflow's and SQLite's errors about the database into one with a hint.

    Raises:
        RegistryError: the database is locked, read-only, damaged or out of reach.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as error:
        message = str(error)
        where = str(project.mlruns.relative_to(project.root) / "mlflow.db")
        hints = {
            "database is locked": "close what holds the lock (a database browser, a backup), then run the same command",
            "readonly database": f"make it writable: chmod u+w {where} {where.rsplit('/', 1)[0]}",
            "read-only": f"make it writable: chmod u+w {where} {where.rsplit('/', 1)[0]}",
            "unable to open database": f"make {where.rsplit('/', 1)[0]} a folder that this user can write",
            "file is not a database": f"restore {where} from a backup, or move it away to start a new registry",
            "malformed": f"restore {where} from a backup, or move it away to start a new registry",
            "disk is full": "free some space, then run the same command",
            "Connection refused": "start the MLflow server that HEADRACE_TRACKING_URI names, or unset it",
        }
        for needle, hint in hints.items():
            if needle in message:
                raise RegistryError(f"MLflow's database failed: {needle}", where=where, hint=hint) from error
        if type(error).__name__ in ("MlflowException", "RestException"):  # for example an experiment deleted in the UI
            raise RegistryError(
                f"MLflow refused: {message.splitlines()[0]}",
                where=where,
                hint="undo the conflicting change in MLflow (deleted experiments can be restored), then run the same command",
            ) from error
        raise


def _search(experiment: str, project: Project, query: str) -> MlflowRun | None:
    store = client(project)
    found = store.get_experiment_by_name(experiment)
    runs = (
        store.search_runs([found.experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"]) if found else []
    )
    return runs[0] if runs else None


def _create(recipe: Recipe, project: Project, tags: dict[str, str]) -> str:
    from mlflow.entities import Param, RunTag

    store = client(project)
    found = store.get_experiment_by_name(recipe.name)
    location = None if project.settings.tracking_uri else f"{artifact_root(project)}/{recipe.name}"
    experiment = found.experiment_id if found else store.create_experiment(recipe.name, artifact_location=location)
    run = store.create_run(experiment, run_name=f"{recipe.name} {time.strftime('%Y-%m-%d %H:%M:%S')}")
    store.log_batch(
        run.info.run_id,
        params=[Param(k, v) for k, v in parameters(recipe).items()],
        tags=[RunTag(k, v) for k, v in tags.items()],
    )
    return str(run.info.run_id)


def parameters(recipe: Recipe) -> dict[str, str]:
    """The sections `model` and `train` as flat names, for example `train.learning_rate`."""
    if (imported := recipe.imported) is not None:
        fields = {"source": imported.source, "sha256": imported.sha256, "licence": imported.licence}
        return {"model.name": imported.name, **{f"model.{name}": str(value) for name, value in fields.items() if value}}
    return {
        name: str(value)
        for section in ("model", "train")
        for name, value in _flat(section, getattr(recipe, section).model_dump()).items()
    }


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, child in value.items() for name, leaf in _flat(f"{prefix}.{key}", child).items()}
