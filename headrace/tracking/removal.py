"""Removes a version from MLflow for good, with its files and, where no other version needs it, its run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from headrace.project import Project
from headrace.tracking.registry import Version
from headrace.tracking.runs import client, registry_errors

LOGGED = "models:/"
"""MLflow's address of a logged model, before its id."""


def size(version: Version, with_run: bool, project: Project) -> int:
    """Bytes of the version's files on this machine."""
    folders = _folders(version, with_run, project)
    return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def remove(version: Version, with_run: bool, project: Project) -> None:
    """Removes files first and the registry's entry last, so that a call that was killed can be repeated.

    MLflow on another machine keeps what it deletes until its own clean-up runs there.

    Args:
        with_run: whether no other version is of the same run.

    Raises:
        RegistryError: MLflow's database cannot be written.
    """
    for folder in _folders(version, with_run, project):
        shutil.rmtree(folder, ignore_errors=True)
    with registry_errors(project):
        store = client(project)
        source = str(store.get_model_version(version.model, version.version).source)
        model_id = source.removeprefix(LOGGED) if source.startswith(LOGGED) else None
        if model_id:
            _ignore_missing(lambda: store.delete_logged_model(model_id))
        if with_run:
            _ignore_missing(lambda: store.delete_run(version.run_id))
        if project.settings.tracking_uri is None:
            database: Any = store._tracking_client.store
            if model_id:
                _ignore_missing(lambda: database._hard_delete_logged_model(model_id))
            if with_run:
                _ignore_missing(lambda: database._hard_delete_run(version.run_id))
        store.delete_model_version(version.model, version.version)


def _folders(version: Version, with_run: bool, project: Project) -> list[Path]:
    """Folders of the version's files inside the project: those of the model, and of the run."""
    found = [version.folder.parent if version.folder.name == "artifacts" else version.folder]
    if with_run:
        with registry_errors(project):
            uri = _ignore_missing(lambda: client(project).get_run(version.run_id).info.artifact_uri)
        if uri and uri.startswith(("file://", "/")):
            found.append(Path(unquote(uri.removeprefix("file://"))).parent)
    ours = (project.mlruns.resolve(), project.state.resolve())
    return [folder for folder in found if any(top in folder.resolve().parents for top in ours) and folder.is_dir()]


def _ignore_missing(call: Any) -> Any:
    """Calls, and returns None for what was deleted already."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "INVALID_PARAMETER_VALUE"):
            return None
        raise
