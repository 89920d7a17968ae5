"""Tests of MLflow's database: created once, completely, from a template where there is one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace.project import Project
from headrace.tracking import database_templates
from headrace.tracking.database import create_database, initialise_tracking
from headrace.tracking.database_templates import copy_template, make_template, template_path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "clone" / "recipes").mkdir(parents=True)
    (tmp_path / "clone" / "dvc.yaml").write_text("stages: {}\n")
    return Project(tmp_path / "clone")


@pytest.fixture
def no_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where templates are looked for: an empty folder."""
    path = tmp_path / "templates" / "mlflow.db"
    monkeypatch.setattr(database_templates, "template_path", lambda package: path)
    return path


def query(path: Path, sql: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def _initialise(root: str) -> None:
    initialise_tracking(Project(Path(root)))


def test_processes_at_the_same_time_create_the_database_once(project: Project) -> None:
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_initialise, [str(project.root)] * 3))
    path = project.mlflow_database
    assert [found.name for found in project.mlruns.iterdir()] == ["mlflow.db"]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert query(path, "SELECT name, artifact_location FROM experiments") == [
        ("Default", (project.mlruns / "artifacts" / "0").as_uri())
    ]
    inode = path.stat().st_ino
    initialise_tracking(project)
    assert path.stat().st_ino == inode


def test_a_copied_template_is_the_database_that_mlflow_creates(project: Project, tmp_path: Path) -> None:
    made = make_template("mlflow", lambda path: create_database(path, "file:///artifacts"))
    assert made == template_path("mlflow"), "make setup has made it, or this test does"
    create_database(tmp_path / "created.db", (project.mlruns / "artifacts").as_uri())
    before = time.time() * 1000
    initialise_tracking(project)
    for sql in (
        "SELECT m.name, c.* FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' ORDER BY m.name, c.cid",
        "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name",
        "SELECT * FROM alembic_version",
        "SELECT experiment_id, name, artifact_location, lifecycle_stage FROM experiments",
    ):
        assert query(project.mlflow_database, sql) == query(tmp_path / "created.db", sql)
    ((created, updated),) = query(project.mlflow_database, "SELECT creation_time, last_update_time FROM experiments")
    assert created == updated >= before - 1


def test_a_template_replaces_no_database_and_an_unwritable_folder_is_no_error(no_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "project" / "mlflow.db"
    assert not copy_template("mlflow", path)
    make_template("mlflow", lambda template: template.write_text("template"))
    assert make_template("mlflow", lambda template: template.write_text("another")) is not None
    assert copy_template("mlflow", path) and path.read_text() == "template"
    path.write_text("in use")
    assert not copy_template("mlflow", path)

    def appears_meanwhile(copied: Path) -> None:
        (tmp_path / "raced.db").write_text("of another process")

    assert not copy_template("mlflow", tmp_path / "raced.db", appears_meanwhile)
    assert (tmp_path / "raced.db").read_text() == "of another process"
    assert list(tmp_path.glob(".*.part")) == []
    no_template.unlink()
    no_template.parent.rmdir()
    no_template.parent.write_text("a file where the folder would be")
    assert make_template("mlflow", lambda template: template.write_text("template")) is None


def test_a_killed_initialisation_leaves_no_partial_database(project: Project) -> None:
    code = (
        "from pathlib import Path; from headrace.tracking import database_templates, database; "
        "from headrace.project import Project; database_templates.template_path = lambda package: Path('/nothing'); "
        f"database.initialise_tracking(Project(Path({str(project.root)!r})))"
    )
    started = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (project.mlruns.exists() and any(project.mlruns.glob(".mlflow.db.*.part"))):
        assert started.poll() is None
        time.sleep(0.01)
    started.kill()
    started.wait()
    assert not project.mlflow_database.exists()
    initialise_tracking(project)
    assert project.mlflow_database.exists()


def test_writers_do_not_fail_each_other_with_the_write_ahead_log(project: Project) -> None:
    initialise_tracking(project)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.mlflow_database}")
    barrier = threading.Barrier(4)

    def write(writer: int) -> int:
        run = client.create_run("0").info.run_id
        barrier.wait()
        for step in range(20):
            client.log_metric(run, "loss", float(step), step=step)
        return len(client.get_metric_history(run, "loss"))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [20] * 4


def test_artifacts_are_found_after_the_project_was_moved(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    from headrace.tracking.runs import client

    initialise_tracking(project)
    store = client(project)
    run = store.create_run("0").info.run_id
    store.log_text(run, "weights", "model/weights.txt")
    store.create_registered_model("toy")
    made = store.create_model_version("toy", f"{store.get_run(run).info.artifact_uri}/model", run)

    moved = Project(project.root.rename(project.root.parent / "moved here"))
    initialise_tracking(moved)
    assert f"the project was moved from {project.root}" in capfd.readouterr().err
    now = client(moved)
    uri = now.get_model_version_download_uri("toy", made.version)
    assert uri.startswith((moved.mlruns / "artifacts").as_uri())
    assert [found.path for found in now.list_artifacts(run, "model")] == ["model/weights.txt"]
    leftovers = [line for line in _dump(moved.mlflow_database) if str(project.root) + "/" in line]
    assert leftovers == []
    initialise_tracking(moved)
    assert "moved" not in capfd.readouterr().err


def _dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()
