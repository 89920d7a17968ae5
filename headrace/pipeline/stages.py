"""The doors through which DVC calls the work: `python -m headrace.pipeline.stages train digits` (see `dvc.yaml`)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from headrace import processes
from headrace.errors import HeadraceError, Interrupted, UsageError, near_miss
from headrace.project import Project, find_project
from headrace.recipe.recipe import Recipe, load_recipe

Stage = Callable[[Recipe, Project], None]
ERROR_FILE = "HEADRACE_STAGE_ERROR"


def validate(recipe: Recipe, project: Project) -> None:
    """The data gate, over all batches."""
    from headrace import console
    from headrace.data.chunks import read_stored
    from headrace.data.validation.validate import render
    from headrace.data.validation.validate import validate as validate_batch
    from headrace.files import write_json

    report = validate_batch(read_stored(project, recipe), recipe, project, "all batches")
    report.to_json(project.validation_report(recipe.name))
    if not report.success:
        console.err().print(render(report))
    report.raise_if_failed()
    # What later stages depend on names no time and no place, so that an unchanged gate changes nothing after it.
    verdict = {"rows": report.rows, "passed": report.passed, "total": report.total, "implicit": report.implicit}
    write_json(project.artifacts(recipe.name) / "validation.json", verdict)


def prepare(recipe: Recipe, project: Project) -> None:
    """Splits and schema."""
    from headrace.pipeline.prepare import prepare

    prepare(recipe, project)


def train(recipe: Recipe, project: Project) -> None:
    """Weights and learning curves."""
    from headrace.training.run import train_model

    train_model(recipe, project)


def export(recipe: Recipe, project: Project) -> None:
    """The graph and its contract."""
    from headrace.pipeline.export import export_model

    export_model(recipe, project)


def evaluate(recipe: Recipe, project: Project) -> None:
    """Metrics, predictions and plots on the test rows."""
    from headrace.pipeline.evaluate import evaluate_export

    evaluate_export(recipe, project)


STAGES: dict[str, Stage] = {"validate": validate, "prepare": prepare, "train": train, "export": export, "evaluate": evaluate}


def main(arguments: list[str]) -> int:
    """Runs one stage; an error is printed, and left for the caller in the file that `HEADRACE_STAGE_ERROR` names."""
    try:
        if len(arguments) != 2:
            raise UsageError(
                f"a stage and a recipe are needed; stages: {', '.join(STAGES)}",
                hint="python -m headrace.pipeline.stages STAGE RECIPE",
            )
        if arguments[0] not in STAGES:
            raise UsageError(
                f"no stage {arguments[0]!r}; {near_miss(arguments[0], STAGES)}",
                hint="python -m headrace.pipeline.stages STAGE RECIPE",
            )
        processes.die_with_parent()
        # Threads that spin while they wait slow a small network five times as soon as another program wants a core.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        project = find_project()
        STAGES[arguments[0]](load_recipe(arguments[1], project), project)
        return 0
    except KeyboardInterrupt:
        return _tell(Interrupted("interrupted", hint="run the same command to go on from the last checkpoint"))
    except Exception as error:
        known = processes.as_headrace_error(error)
        if known is None:
            raise
        return _tell(known)


def _tell(error: HeadraceError) -> int:
    named = os.environ.get(ERROR_FILE)
    if named:
        Path(named).write_text(json.dumps(error.to_dict()), encoding="utf-8")
    else:
        sys.stderr.write(f"error {error}\n")
    return error.exit_code


if __name__ == "__main__":
    processes.raise_gc_threshold()
    code = main(sys.argv[1:])
    processes.freeze_gc()
    sys.exit(code)
