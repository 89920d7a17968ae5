"""A scheduled refresh and `headrace data next` with a source that has no later batch: both succeed and say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger
from prefect.states import Completed

import flows.refresh
from headrace.cli.data import data as data_command
from headrace.data.ingest import ingest
from headrace.data.versions import data_version
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.release import refreshing


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose recipe `toy` has the first of two months."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "toy.csv").write_text("month,y\n" + "".join(f"{month},{day}\n" for month in (1, 2) for day in range(10)))
    fields: dict[str, Any] = {
        "name": "toy",
        "task": "regression",
        "data": {"source": "toy.csv", "target": "y", "incremental": {"column": "month", "first": 1}},
        "expect": [],
        "model": {"name": "mlp"},
        "train": {},
        "serve": {},
    }
    (root / "recipes" / "toy.yaml").write_text(yaml.safe_dump(fields))
    monkeypatch.setenv("HEADRACE_ROOT", str(root))
    found = Project(root)
    ingest(load_recipe("toy", found), found, lambda line: None)
    return found


def test_refresh_succeeds_when_the_source_is_exhausted(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    released: list[int] = []

    def release(recipe_name: str, cause: str | None, return_state: bool) -> State[Any]:
        assert cause is None and return_state
        released.append(data_version(project, recipe_name).rows)
        refreshing.forget(recipe_name, project)  # as `record` and `stop` do
        return Completed(data={"outcome": "unchanged"})

    monkeypatch.setattr(flows.refresh, "release", release)
    monkeypatch.setattr(flows.refresh, "bring_next_batch", flows.refresh.bring_next_batch.fn)  # without Prefect's engine
    with disable_run_logger():
        flows.refresh.refresh.fn("toy")
        assert released == [20]
        before = data_version(project, "toy")
        flows.refresh.refresh.fn("toy")
    assert "everything has arrived" in capfd.readouterr().err
    assert data_version(project, "toy") == before


def test_a_batch_is_released_before_the_next_one_is_fetched(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A refresh is killed once its batch has arrived; the next one releases it, and the one after that fetches another."""
    source = project.root / "toy.csv"
    source.write_text(source.read_text() + "".join(f"3,{day}\n" for day in range(10)))
    monkeypatch.setattr(flows.refresh, "bring_next_batch", flows.refresh.bring_next_batch.fn)
    rows: list[int] = []

    def release(recipe_name: str, is_killed: bool = False, **_: Any) -> State[Any]:
        rows.append(data_version(project, recipe_name).rows)
        if is_killed:
            raise KeyboardInterrupt
        refreshing.forget(recipe_name, project)  # as `record` and `stop` do
        return Completed(data={})

    with disable_run_logger():
        monkeypatch.setattr(flows.refresh, "release", lambda name, **_: release(name, is_killed=True))
        with pytest.raises(KeyboardInterrupt):
            flows.refresh.refresh.fn("toy")
        monkeypatch.setattr(flows.refresh, "release", release)
        flows.refresh.refresh.fn("toy")
        assert "it comes first" in capfd.readouterr().err
        flows.refresh.refresh.fn("toy")
    assert rows == [20, 20, 30]


def test_data_next_by_hand_succeeds_when_the_source_is_exhausted(project: Project) -> None:
    added, exhausted = (CliRunner().invoke(data_command, ["next", "toy", "--json"]) for _ in range(2))
    assert (added.exit_code, exhausted.exit_code) == (0, 0), exhausted.output
    assert json.loads(added.stdout) == json.loads(exhausted.stdout) | {"added": True}
    assert json.loads(exhausted.stdout)["added"] is False
    plain = CliRunner().invoke(data_command, ["next", "toy"])
    assert plain.exit_code == 0 and "everything has arrived: the source has no month after 2" in plain.stderr
