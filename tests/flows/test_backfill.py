"""The flow `backfill` on a real Prefect server: it scores, and a run that was cancelled is continued by the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.context import refresh_global_settings_context

from flows.backfill import backfill
from flows.cancellation import RunEnded
from headrace.backfill.plan import Work
from headrace.project import Project
from headrace.services import prefect
from headrace.services.prefect import prefect_environment
from tests.cancellations import cancelled_once
from tests.projects import table
from tests.release.candidates import new_recipe, released
from tests.services.prefect_server import prefect_server


@pytest.fixture(scope="module")
def served(built: Project) -> Iterator[tuple[Project, str]]:
    """The built project with a Prefect server, and the name of a released model."""
    recipe = new_recipe(built)
    released(recipe, built)
    with prefect_server(built.root) as project, pytest.MonkeyPatch.context() as patch:
        for name, value in prefect_environment(project).items():
            patch.setenv(name, value)
        patch.setenv("HEADRACE_PREFECT_PORT", str(project.settings.prefect_port))
        refresh_global_settings_context()
        yield project, recipe.name
    refresh_global_settings_context()


@pytest.fixture(autouse=True)
def _root(served: tuple[Project, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_ROOT", str(served[0].root))
    monkeypatch.setenv("HEADRACE_PREFECT_PORT", str(served[0].settings.prefect_port))


def test_a_run_scores_and_the_same_run_again_changes_nothing(served: tuple[Project, str], tmp_path: Path) -> None:
    project, model = served
    table(120).to_csv(project.root / "past.csv", index=False)
    out = tmp_path / "scored.csv"
    record = backfill(model, "past.csv", str(out), version="1", workers=1)
    assert (record["rows"], record["refused"], record["out"]) == (120, 0, str(out)) and out.is_file()
    assert backfill(model, "past.csv", str(out), version="", workers=1) == record
    names = {"prepare backfill", "score", "join"}
    runs = prefect.call(project, "POST", "task_runs/filter", {})
    assert names <= {run["name"].rpartition("-")[0] for run in runs}


@pytest.mark.exhaustive
def test_a_cancelled_run_ends_its_workers_and_the_next_one_continues(served: tuple[Project, str], tmp_path: Path) -> None:
    project, model = served
    data, out = tmp_path / "past.parquet", tmp_path / "scored.parquet"
    table(250_000).to_parquet(data)

    with cancelled_once(lambda: any(Work(out).manifests.glob("*.json")), project), pytest.raises(RunEnded):
        backfill(model, str(data), str(out), workers=1)
    workers = [one for one in psutil.Process(os.getpid()).children() if "headrace.backfill.worker" in one.cmdline()]
    assert not workers and not out.exists()
    assert backfill(model, str(data), str(out), workers=2)["rows"] == 250_000
