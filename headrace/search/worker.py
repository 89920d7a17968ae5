"""A process that trains trials: `python -m headrace.search.worker FOLDER`. Each line of its input is a trial,
`{"number", "values"}`. For each it writes lines of JSON: `{"epoch", "value"}` after each epoch, which is answered by `{"go"}`,
and at the end `{"complete"}`, `{"pruned"}` or `{"failed"}` (without `is_clean` the process has to be replaced); or `{"error"}`,
which ends the search."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.errors import DataError, DiskFull, ExportError, HeadraceError, TrainingError
from headrace.permissions import set_private_umask
from headrace.plugins import add_to_import_path
from headrace.processes import as_headrace_error, die_with_parent
from headrace.project import find_project
from headrace.recipe.recipe import parse_recipe
from headrace.recipe.search import with_values
from headrace.search.place import Place

Reply = dict[str, Any]


def main(arguments: list[str]) -> int:
    die_with_parent()
    set_private_umask()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not a reply

    def send(reply: Reply) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    try:
        trainer = _load(Place(Path(arguments[0])))
    except Exception as error:
        send({"error": _described(error)})
        return 1
    send({"ready": True})
    for line in sys.stdin:
        send(_trained(trainer, json.loads(line), send))
    return 0


def _load(place: Place) -> Any:
    from headrace.search.trainer import Trainer

    project = find_project()
    add_to_import_path(project.root)
    recipe = parse_recipe(place.recipe.read_text(encoding="utf-8"), str(place.recipe))
    return Trainer(recipe, place, project)


def _trained(trainer: Any, trial: dict[str, Any], send: Callable[[Reply], None]) -> Reply:
    from headrace.search.trainer import Pruned

    def on_epoch(epoch: int, value: float) -> bool:
        send({"epoch": epoch, "value": value})
        return bool(json.loads(sys.stdin.readline() or '{"go": false}')["go"])

    try:
        one_process = {"train.processes": 1, "train.strategy": "ddp"} if trainer.recipe.train.processes > 1 else {}
        recipe = with_values(trainer.recipe, {**trial["values"], **one_process})
        found = trainer.train(trial["number"], recipe, on_epoch)
        return {"complete": found.value, "epochs": found.epochs}
    except Pruned:
        return {"pruned": True}
    except (TrainingError, ExportError) as error:
        is_clean = "out of memory" not in error.message  # else what is left in this process is not known
        return {"failed": error.message, "is_clean": is_clean}
    except Exception as error:
        known = as_headrace_error(error)
        if isinstance(known, DiskFull | DataError) or isinstance(error, OSError):
            return {"error": _described(error)}
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"}


def _described(error: Exception) -> dict[str, Any]:
    """An error as `HeadraceError.to_dict` gives it."""
    if (known := as_headrace_error(error)) is not None:
        return known.to_dict()
    traceback.print_exc()
    message = f"{type(error).__name__}: {str(error)[:500]}"
    return HeadraceError(message, hint="the worker's log shows where; then run the same command").to_dict()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
