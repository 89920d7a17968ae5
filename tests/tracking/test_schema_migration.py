"""Databases of older versions are migrated, with a copy kept; those of newer ones are refused and stay as they are."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError, NewerFile
from headrace.project import Project
from headrace.services.prefect_database import upgrade_database
from headrace.tracking.database import initialise_tracking
from headrace.tracking.database_templates import copy_template
from headrace.tracking.schema_migration import newest_revision, revisions, schema_of, upgrade_schema


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "clone" / "mlruns").mkdir(parents=True)
    return Project(tmp_path / "clone")


def query(path: Path, sql: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql, values).fetchall()


def older_mlflow_database(path: Path) -> str:
    """A database as the MLflow before the last migration left it; returns its schema."""
    import sqlalchemy
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    before = revisions("mlflow")[newest_revision("mlflow")]
    assert before is not None
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(f"sqlite:///{path}")  # type: ignore[no-untyped-call]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
    engine.dispose()
    return before


def test_a_database_of_an_older_mlflow_is_migrated_and_a_copy_kept(project: Project) -> None:
    path = project.mlflow_database
    before = older_mlflow_database(path)
    query(
        path, "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) VALUES (7, 'x', 'y', 'active')"
    )
    assert schema_of(path) == before
    initialise_tracking(project)
    from mlflow import MlflowClient

    assert schema_of(path) == newest_revision("mlflow")
    assert MlflowClient(f"sqlite:///{path}").get_experiment("7").name == "x"
    (copy,) = project.mlruns.glob("mlflow.db.schema-*")
    assert copy.name.startswith(f"mlflow.db.schema-{before}-") and copy.stat().st_mode & 0o777 == 0o600
    assert schema_of(copy) == before and query(copy, "SELECT name FROM experiments WHERE experiment_id = 7") == [("x",)]
    (project.state / "tracking.done").unlink()
    initialise_tracking(project)
    assert list(project.mlruns.glob("mlflow.db.schema-*")) == [copy], "migrated once"


@pytest.mark.parametrize("package", ["mlflow", "prefect"])
def test_a_database_of_a_newer_version_is_refused_unchanged(package: str, project: Project) -> None:
    path = project.mlruns / f"{package}.db"
    assert copy_template(package, path), "made by make setup"
    query(path, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    content = path.read_bytes()
    with pytest.raises(NewerFile, match=rf"{package}\.db has schema ffffffffffff, which {package} .* does not know") as caught:
        initialise_tracking(project) if package == "mlflow" else upgrade_database(path)
    assert caught.value.where == str(path) and "install the version of Headrace that wrote it" in str(caught.value.hint)
    assert path.read_bytes() == content and not list(project.mlruns.glob("*.schema-*"))


def test_a_migration_that_fails_is_undone(project: Project) -> None:
    path = project.mlflow_database
    copy_template("mlflow", path)
    before = revisions("mlflow")[newest_revision("mlflow")]
    query(path, "UPDATE alembic_version SET version_num = ?", before)

    def fail_halfway() -> None:
        query(path, "DROP TABLE runs")
        query(path, "CREATE TABLE half (n INTEGER)")
        raise RuntimeError("no such column: x")

    with pytest.raises(HeadraceError, match=r"could not be migrated from schema .*, and is as it was: no such column: x"):
        upgrade_schema(path, "mlflow", fail_halfway)
    assert schema_of(path) == before
    tables = {name for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "runs" in tables and "half" not in tables


def test_a_database_of_an_older_prefect_is_migrated_and_a_copy_kept(tmp_path: Path) -> None:
    path = tmp_path / "prefect.db"
    assert copy_template("prefect", path), "made by make setup"
    before = revisions("prefect")[newest_revision("prefect")]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    subprocess.run(
        [sys.executable, "-m", "prefect", "server", "database", "downgrade", "--yes", "--revision", str(before)],
        env={**environment, "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{path}"},
        check=True,
        capture_output=True,
    )
    assert schema_of(path) == before
    copy = upgrade_database(path)
    assert copy is not None and schema_of(copy) == before and schema_of(path) == newest_revision("prefect")
    assert upgrade_database(path) is None


def test_revisions_are_those_that_alembic_finds() -> None:
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    script = ScriptDirectory.from_config(utils._get_alembic_config("sqlite://"))  # type: ignore[no-untyped-call]
    assert newest_revision("mlflow") == script.get_current_head()
    assert revisions("mlflow").keys() == {found.revision for found in script.walk_revisions()}
