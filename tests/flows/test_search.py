"""The flow `search` on a real Prefect server: trials are tasks, and a run that was cancelled is continued by the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.context import refresh_global_settings_context

from flows.cancellation import RunEnded
from flows.search import search
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.search.place import searches
from headrace.services import prefect
from headrace.services.prefect import prefect_environment
from tests.cancellations import cancelled_once
from tests.projects import make_project
from tests.search.searching import SPACE, write_recipe
from tests.services.prefect_server import prefect_server

pytestmark = pytest.mark.exhaustive


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Project]:
    made = make_project(tmp_path / "clone")
    write_recipe(made, "tiny", {"space": SPACE, "trials": 4, "pruner": "none"}, train={"epochs": 12})
    with prefect_server(made.root) as project, pytest.MonkeyPatch.context() as patch:
        for name, value in prefect_environment(project).items():
            patch.setenv(name, value)
        patch.setenv("HEADRACE_PREFECT_PORT", str(project.settings.prefect_port))
        patch.setenv("HEADRACE_ROOT", str(project.root))
        patch.chdir(project.root)
        refresh_global_settings_context()
        yield project
    refresh_global_settings_context()


def test_trials_are_tasks_and_a_cancelled_run_is_continued(served: Project) -> None:
    trials = searches("tiny", served)
    with cancelled_once(lambda: any(trials.glob("*/trials/*.npy")), served), pytest.raises(RunEnded):
        search("tiny", trials=200, workers=2)
    assert not [one for one in psutil.Process(os.getpid()).children() if "headrace.search.worker" in one.cmdline()]

    done = len(list(searches("tiny", served).glob("*/trials/*.npy")))
    found = search("tiny", trials=done + 3, workers=2, apply=True)
    assert (found["trials"], found["counts"]["complete"]) == (done + 3, done + 3)
    assert load_recipe("tiny", served).train.batch_size == found["winner"]["values"]["train.batch_size"]
    runs = prefect.call(served, "POST", "task_runs/filter", {})
    assert {f"trial-{number}" for number in range(done + 3)} <= {run["name"] for run in runs}
