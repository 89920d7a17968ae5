"""What the commands in dvc.yaml run: `python -m headrace.pipeline.stages train digits`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from headrace import permissions, processes
from headrace.errors import HeadraceError, Interrupted, UsageError, near_miss
from headrace.project import Project, find_project
from headrace.recipe.recipe import Recipe, load_recipe

Stage = Callable[[Recipe, Project], None]
ERROR_FILE = "HEADRACE_STAGE_ERROR"


def validate(recipe: Recipe, project: Project) -> None:
    """Validates all batches."""
    from headrace.pipeline.validate import validate_batches

    validate_batches(recipe, project)


def prepare(recipe: Recipe, project: Project) -> None:
    """Splits the rows and learns the schema."""
    from headrace.pipeline.prepare import prepare

    prepare(recipe, project)


def train(recipe: Recipe, project: Project) -> None:
    """Trains the model."""
    from headrace.training.run import train_model

    train_model(recipe, project)


def export(recipe: Recipe, project: Project) -> None:
    """Exports the graph and its contract."""
    from headrace.pipeline.export import export_model

    export_model(recipe, project)


def evaluate(recipe: Recipe, project: Project) -> None:
    """Computes metrics, predictions and plots on the test rows."""
    from headrace.pipeline.evaluate import evaluate_export

    evaluate_export(recipe, project)


def import_model(recipe: Recipe, project: Project) -> None:
    """Converts and checks a model that others trained."""
    from headrace.pipeline.import_model import import_model

    import_model(recipe, project)


def custom_code(recipe: Recipe, project: Project) -> None:
    """Writes what the recipe's stages depend on beside what dvc.yaml names."""
    from headrace.pipeline.custom_code import write_custom_code

    write_custom_code(recipe, project)


STAGES: dict[str, Stage] = {"validate": validate, "prepare": prepare, "train": train, "export": export, "evaluate": evaluate}
"""The stages of every recipe whose model is trained, in order."""
IMPORT = "import_model"
"""The only stage of a recipe whose model others trained."""
COMMANDS: dict[str, Stage] = {**STAGES, IMPORT: import_model, "custom_code": custom_code}


def main(arguments: list[str]) -> int:
    """Runs one stage. An error is written to the file that `HEADRACE_STAGE_ERROR` names, for the caller, or else printed."""
    try:
        if len(arguments) != 2:
            raise UsageError(
                f"expected a stage and a recipe; stages: {', '.join(STAGES)}",
                hint="python -m headrace.pipeline.stages STAGE RECIPE",
            )
        if arguments[0] not in COMMANDS:
            raise UsageError(
                f"unknown stage {arguments[0]!r}; {near_miss(arguments[0], STAGES)}",
                hint="python -m headrace.pipeline.stages STAGE RECIPE",
            )
        processes.die_with_parent()
        processes.interrupt_on_signals()
        # Threads that spin while they wait make a small network five times slower as soon as another program needs a core.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        project = find_project()
        COMMANDS[arguments[0]](load_recipe(arguments[1], project), project)
        return 0
    except KeyboardInterrupt:
        return _report(Interrupted("interrupted", hint="run the same command to resume from the last checkpoint"))
    except Exception as error:
        known = processes.as_headrace_error(error)
        if known is None:
            raise
        return _report(known)


def _report(error: HeadraceError) -> int:
    named = os.environ.get(ERROR_FILE)
    if named:
        Path(named).write_text(json.dumps(error.to_dict()), encoding="utf-8")
    else:
        sys.stderr.write(f"error {error}\n")
    return error.exit_code


if __name__ == "__main__":
    permissions.set_private_umask()
    processes.raise_gc_threshold()
    code = main(sys.argv[1:])
    processes.freeze_gc()
    sys.exit(code)
