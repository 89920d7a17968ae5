"""`models.json`, the only record of which replicas serve, and the folder it is in. Imports little: the watchdog reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.files import read_object
from headrace.project import Project
from headrace.serving.replicas.replica import SCHEMA_VERSION

VERSION = "schema_version"
"""Has an underscore, which no model's name does."""


def read_models(project: Project) -> dict[str, Any]:
    """Returns the stored values of each model; empty before the first `up`.

    Raises:
        DamagedFile: the file cannot be read. Envoy keeps serving from its own files.
        NewerFile: a newer version of Headrace wrote it.
    """
    path = folder(project) / "models.json"
    hint = f"rm '{path}', then headrace up   (starts the versions that the journal records as released)"
    return {model: found for model, found in (read_object(path, hint, SCHEMA_VERSION) or {}).items() if model != VERSION}


def folder(project: Project) -> Path:
    """Returns `.headrace/gateway`, or the old folder `.headrace/door` until the next `up` has moved it."""
    old = _old_folder(project)
    return old if old.exists() and not project.gateway.exists() else project.gateway


def adopt_old_folder(project: Project) -> None:
    """Moves the folder of a Headrace from before the gateway had this name, so that its models stay known."""
    if folder(project) != project.gateway:
        (_old_folder(project) / "opened.json").unlink(missing_ok=True)  # has old names; written again under the new ones
        _old_folder(project).rename(project.gateway)


def _old_folder(project: Project) -> Path:
    return project.state / "door"
