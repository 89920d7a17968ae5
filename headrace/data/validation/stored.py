"""Validation of all stored batches, without a second run for a first batch that ingest has validated a moment before."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

import headrace
from headrace.data.chunks import read_stored
from headrace.data.tables import batch_files
from headrace.data.validation.validate import ValidationReport, validate
from headrace.files import read_cached_json, write_json
from headrace.project import Project

if TYPE_CHECKING:
    from headrace.recipe.recipe import Recipe

LIBRARIES = ("great_expectations", "pandas", "pyarrow")


def validate_stored(recipe: Recipe, project: Project) -> ValidationReport:
    """Returns the report on all batches of `data/<recipe>`, validated as one table. The report that `keep_report` left is
    used instead when data, expectations and code are the same, and only once: a stage that is forced to run validates again.

    Raises:
        DataError: the recipe has no data, or a batch is damaged.
        RecipeError: as `validate`.
    """
    kept = _take_report(recipe, project)
    report = kept or validate(read_stored(project, recipe), recipe, project, "all batches")
    report.to_json(project.validation_report(recipe.name))
    return report


def keep_report(report: ValidationReport, recipe: Recipe, project: Project) -> None:
    """Keeps the report of a first batch for the next `validate_stored`, if it is the only batch: rows of several batches
    have to be validated together."""
    if report.success and len(batch_files(project, recipe.name)) == 1:
        write_json(_path(recipe, project), {"key": _key(recipe, project), "report": report.model_dump(mode="json")})


def _take_report(recipe: Recipe, project: Project) -> ValidationReport | None:
    path = _path(recipe, project)
    kept = read_cached_json(path)
    path.unlink(missing_ok=True)
    try:
        if isinstance(kept, dict) and kept["key"] == _key(recipe, project):
            return ValidationReport.model_validate(kept["report"])
    except (KeyError, ValidationError):  # written by another version of the code
        pass
    return None


def _path(recipe: Recipe, project: Project) -> Path:
    return project.validation_report(recipe.name).with_suffix(".first-batch.json")


def _key(recipe: Recipe, project: Project) -> str:
    """Returns a hash of all that the report depends on: the data, the recipe's sections, the code and its libraries."""
    facts = {
        "recipe": recipe.model_dump(mode="json", include={"name", "task", "data", "expect"}),
        "data": {path.name: _file_digest(path) for path in batch_files(project, recipe.name)},
        "code": _code_digest(),
        "libraries": {name: installed_version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    package = Path(headrace.__file__).parent
    files = sorted(file for folder in ("data", "recipe") for file in (package / folder).rglob("*.py"))
    found = {file.relative_to(package).as_posix(): _file_digest(file) for file in files}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
