"""MLflow's SQLite database: created once, completely, with a write-ahead log, also by several processes at the same time."""

from __future__ import annotations

import logging
import sqlite3
import time
from importlib.metadata import version
from pathlib import Path

from headrace.files import atomic_write, write_text
from headrace.project import Project
from headrace.tracking.database_templates import copy_template


def artifact_root(project: Project) -> str:
    """Where MLflow keeps artifacts, as a URI."""
    return (project.mlruns / "artifacts").as_uri()


def initialise_tracking(project: Project) -> None:
    """Creates the database, unless it exists or the setting `tracking_uri` names another. Takes a millisecond once it exists.

    The first time copies a template, or takes MLflow's import and its migrations, about 4 s. A kill leaves no partial file.
    """
    path, done = project.mlflow_database, project.state / "tracking.done"
    if path.exists() and _read(done) == _mark(path):
        return
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    project.mlruns.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "tracking.lock"):
        if project.settings.tracking_uri is not None:
            return
        artifacts = artifact_root(project)
        if not path.exists() and not copy_template("mlflow", path, lambda copied: _set_artifact_root(copied, artifacts)):
            with atomic_write(path) as beside:
                create_database(beside, artifacts)
        _use_write_ahead_log(path)
        write_text(done, _mark(path))


def create_database(path: Path, artifacts: str) -> None:
    """Runs MLflow's migrations and creates the default experiment.

    Args:
        artifacts: URI of the folder for artifacts.
    """
    import sqlalchemy
    from mlflow.store.db import utils
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = f"sqlite:///{path}"
    engine = sqlalchemy.create_engine(uri)

    @sqlalchemy.event.listens_for(engine, "connect")
    def _skip_syncs(connection: sqlite3.Connection, _: object) -> None:
        # The file is renamed once it is complete, and thrown away otherwise: no need to sync each migration.
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    # Also creates the default experiment, with its artifacts in the given folder.
    store = SqlAlchemyStore(uri, artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()


def _set_artifact_root(path: Path, artifacts: str) -> None:
    """Gives the default experiment of a copied template this project's artifact folder and the present time."""
    milliseconds = int(time.time() * 1000)
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? || '/' || experiment_id, creation_time = ?, last_update_time = ?",
                (artifacts, milliseconds, milliseconds),
            )
    finally:
        connection.close()


def _use_write_ahead_log(path: Path) -> None:
    """Readers then do not wait for a writer; without it writers sometimes fail under load. The file keeps the mode."""
    connection = sqlite3.connect(path, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _mark(path: Path) -> str:
    """Changes when the file is another one, or MLflow is."""
    return f"mlflow {version('mlflow')} inode {path.stat().st_ino}"


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
