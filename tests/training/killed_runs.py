"""Trainings in another process that is killed at a chosen file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from headrace.project import Project
from headrace.recipe.recipe import Recipe
from tests.paths import ROOT

CHILD = """
import os, signal, sys
from pathlib import Path
from headrace.recipe.recipe import load_recipe
from headrace.project import Project
from headrace.training.run import train_model
project, left = Project(Path(sys.argv[1])), int(sys.argv[4])

def watch(event, args):
    global left
    if event == "os.rename" and str(args[1]).endswith(sys.argv[3]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
train_model(load_recipe(sys.argv[2], project), project)
"""


def killed(recipe: Recipe, project: Project, file: str, time: int) -> None:
    """Trains in another process, which dies when `file` is about to take its place for the given time."""
    command = [sys.executable, "-c", CHILD, str(project.root), recipe.name, file, str(time)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=environment, capture_output=True, timeout=200).returncode == -signal.SIGKILL
