"""The trained weights of a registered version (`model.pt`): with its run if `train.start` is `champion`, and in DVC's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from headrace.files import write_with
from headrace.project import Project
from headrace.tracking.registry import Version
from headrace.tracking.runs import FOLDER_OF_WEIGHTS, WEIGHTS, client, md5, registry_errors


def copy_weights(version: Version, to: Path, project: Project) -> bool:
    """Copies the weights of a version to the file `to`; returns False if no place has them any more.

    Raises:
        RegistryError: MLflow's database cannot be read.
    """
    from mlflow.exceptions import MlflowException

    with registry_errors(project):
        try:
            expected = client(project).get_run(version.run_id).data.tags.get(WEIGHTS)
        except MlflowException:  # the run was deleted
            return False
    if expected is None:
        return False
    return _copy_logged(version, expected, to, project) or _copy_cached(expected, to, project)


def _copy_logged(version: Version, expected: str, to: Path, project: Project) -> bool:
    import tempfile

    import mlflow

    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        try:
            uri = f"runs:/{version.run_id}/{FOLDER_OF_WEIGHTS}/model.pt"
            found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=project.tracking_uri))
        except Exception:  # the run has no such file, which every store reports by an error of its own
            return False
        return _copy(found, expected, to)


def _copy_cached(expected: str, to: Path, project: Project) -> bool:
    from headrace.data.versions import fetch_files, open_repo

    with open_repo(project) as repo:
        cached = Path(repo.cache.local.oid_to_path(expected))
        if not cached.is_file() and repo.config["core"].get("remote"):
            fetch_files(repo, [expected])
    return cached.is_file() and _copy(cached, expected, to)


def _copy(source: Path, expected: str, to: Path) -> bool:
    if md5(source) != expected:
        return False
    write_with(to, lambda beside: shutil.copyfile(source, beside))
    return True
