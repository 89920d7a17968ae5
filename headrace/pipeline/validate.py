"""The stage `validate`: all batches against the expectations of the recipe."""

from __future__ import annotations

from headrace import console
from headrace.data.validation.stored import validate_stored
from headrace.data.validation.validate import render
from headrace.files import write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe


def validate_batches(recipe: Recipe, project: Project) -> None:
    """Validates all batches and writes `validation.json`.

    Raises:
        DataRejected: an expectation failed; the report is printed.
    """
    report = validate_stored(recipe, project)
    if not report.success:
        console.err().print(render(report))
    report.raise_if_failed()
    # Without times and paths, so that the file is the same as long as the outcome is, and later stages are skipped.
    outcome = {"rows": report.rows, "passed": report.passed, "total": report.total, "implicit": report.implicit}
    write_json(project.artifacts(recipe.name) / "validation.json", outcome)
