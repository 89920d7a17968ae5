"""Writes down when the steps of a flow begin and end, and waits at one of them.

Tests put this file into the package `flows` of a project, so that flows meet it wherever they are started: by a command, or by
Prefect's worker.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from prefect import Task

FOLDER = Path(__file__).resolve().parents[2] / "steps"
"""Beside the project: the log of the steps, and the point to wait at."""

_seen: Counter[str] = Counter()
_run = Task.__call__


def _watched(self: Task[Any, Any], *args: Any, **kwargs: Any) -> Any:
    """Runs a task. A second task of the same name in one process is another step: `train 2`."""
    _seen[self.name] += 1
    step = self.name if _seen[self.name] == 1 else f"{self.name} {_seen[self.name]}"
    _reach(step, "before")
    result = _run(self, *args, **kwargs)
    _reach(step, "after")
    return result


def _reach(step: str, when: str) -> None:
    """Logs that a point was reached, and waits while the file `pause` names it."""
    line = json.dumps({"step": step, "when": when, "pid": os.getpid(), "at": time.time()})
    with (FOLDER / "log").open("a", encoding="utf-8") as log:
        log.write(line + "\n")
    while _is_paused(f"{when} {step}"):
        time.sleep(0.02)


def _is_paused(point: str) -> bool:
    try:
        return (FOLDER / "pause").read_text(encoding="utf-8") == point
    except FileNotFoundError:
        return False


Task.__call__ = _watched  # type: ignore[method-assign]
