"""MLflow's SQLite database: made once, whole, with a write-ahead log, however many processes ask for it at the same time."""

from __future__ import annotations

import logging
import sqlite3
from importlib.metadata import version
from pathlib import Path

from headrace.files import whole, write_text
from headrace.project import Project
from headrace.settings import database, load_settings


def artifact_root(project: Project) -> str:
    """Where MLflow keeps artifacts, as a URI."""
    return (project.mlruns / "artifacts").as_uri()


def initialise_tracking(project: Project) -> None:
    """Makes the database unless it is there, or MLflow's tracking is elsewhere. Takes a millisecond once it is done.

    The first time costs MLflow's import and its migrations, about 4 s; a kill on the way leaves nothing.
    """
    path, done = database(project), project.state / "tracking.done"
    if path.exists() and _read(done) == _mark(path):
        return
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    project.mlruns.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "tracking.lock"):
        if load_settings(project).tracking_uri is not None:
            return
        if not path.exists():
            with whole(path) as beside:
                _create(beside, artifact_root(project))
        _use_write_ahead_log(path)
        write_text(done, _mark(path))


def _create(path: Path, artifacts: str) -> None:
    import sqlalchemy
    from mlflow.store.db import utils
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = f"sqlite:///{path}"
    engine = sqlalchemy.create_engine(uri)

    @sqlalchemy.event.listens_for(engine, "connect")
    def _hurry(connection: sqlite3.Connection, _: object) -> None:
        # Nobody reads this file before it is renamed, and a half-made one is thrown away: no need to sync each migration.
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()
    # Makes the default experiment too, with its artifacts in their place.
    store = SqlAlchemyStore(uri, artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()


def _use_write_ahead_log(path: Path) -> None:
    """With it readers do not wait for a writer; without it writers fail now and then under load. It stays with the file."""
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
