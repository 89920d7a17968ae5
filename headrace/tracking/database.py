"""MLflow's SQLite database: created once, completely, with a write-ahead log, also by several processes at the same time.

A database of an older MLflow is migrated, after a copy of it was made that is kept beside it.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from headrace import console
from headrace.files import atomic_write, write_text
from headrace.project import Project
from headrace.tracking.database_templates import copy_template
from headrace.tracking.schema_migration import upgrade_schema, use_write_ahead_log

ARTIFACTS = "/mlruns/artifacts"
T = TypeVar("T")


def artifact_root(project: Project) -> str:
    """Where MLflow keeps artifacts, as a URI."""
    return (project.mlruns / "artifacts").as_uri()  # ends with ARTIFACTS


def initialise_tracking(project: Project) -> None:
    """Creates the database, unless it exists or the setting `tracking_uri` names another. Takes a millisecond once it exists.

    The first time copies a template, or takes MLflow's import and its migrations, about 4 s. A kill leaves no partial file.
    After the project's folder was moved, the locations of artifacts are changed, which MLflow keeps as absolute addresses.

    Raises:
        NewerFile: a newer MLflow wrote the database.
        HeadraceError: a migration of an older database failed; it is as it was.
    """
    path, done = project.mlflow_database, project.state / "tracking.done"
    artifacts = artifact_root(project)
    if path.exists() and _read(done) == _mark(path, artifacts):
        return
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    project.mlruns.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "tracking.lock"):
        if project.settings.tracking_uri is not None:
            return
        if not path.exists() and not copy_template("mlflow", path, lambda copied: _set_artifact_root(copied, artifacts)):
            with atomic_write(path) as beside:
                create_database(beside, artifacts)
        upgrade_schema(path, "mlflow", lambda: _migrate(path))
        use_write_ahead_log(path)
        if moved_from := move_artifact_locations(path, artifacts):
            console.report(f"the project was moved from {moved_from}: MLflow's artifacts are found in their new place")
        write_text(done, _mark(path, artifacts))


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


def deleted_in_mlflow(served: Mapping[str, tuple[str, str]], project: Project) -> dict[str, str]:
    """What was deleted of some versions, by model: `version` or `run`. Reads the database without MLflow's import, which
    takes seconds; {} where it is on another machine.

    Args:
        served: number of the version and id of its run, by model.
    """
    has_run = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"

    def read(database: sqlite3.Connection) -> dict[str, str]:
        found: dict[str, str] = {}
        for model, (number, run_id) in served.items():
            if not _has_version(database, model, number):
                found[model] = "version"
            elif database.execute(has_run, (run_id,)).fetchone() is None:
                found[model] = "run"
        return found

    return _read_database(project, read) or {}


def misplaced_champions(served: Mapping[str, str], project: Project) -> dict[str, str | None]:
    """Where the alias `champion` points, by model, if not to the version that serves; None if somebody deleted it.

    A version that was deleted from MLflow can have no alias: only one that points to another version is misplaced then.
    Reads the database as `deleted_in_mlflow`.

    Args:
        served: number of the version, by model.
    """
    query = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = 'champion'"

    def read(database: sqlite3.Connection) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for model, number in served.items():
            row = database.execute(query, (model,)).fetchone()
            named = None if row is None else str(row[0])
            if named != number and (named is not None or _has_version(database, model, number)):
                found[model] = named
        return found

    return _read_database(project, read) or {}


def _has_version(database: sqlite3.Connection, model: str, number: str) -> bool:
    query = "SELECT 1 FROM model_versions WHERE name = ? AND version = ? AND current_stage != 'Deleted_Internal'"
    return database.execute(query, (model, int(number))).fetchone() is not None


def _read_database(project: Project, read: Callable[[sqlite3.Connection], T]) -> T | None:
    """What `read` returns for MLflow's database; None where it is on another machine, locked or damaged: the commands that
    need it say so."""
    if project.settings.tracking_uri is not None or not project.mlflow_database.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{project.mlflow_database.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            return read(connection)
    except (sqlite3.Error, ValueError):
        return None


def _migrate(path: Path) -> None:
    """Runs those of MLflow's migrations that a database does not have."""
    import sqlalchemy
    from mlflow.store.db import utils

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    try:
        utils._upgrade_db(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()


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


def move_artifact_locations(path: Path, artifacts: str) -> str | None:
    """Changes all locations of artifacts to `artifacts`, at once or not at all, where the project had another folder before.

    Returns:
        The earlier folder of the project; None if the locations are right.
    """
    connection = sqlite3.connect(path, timeout=30)
    try:
        with connection:
            found = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
            before = str(found[0] if found else "").removesuffix("/0")
            if before == artifacts or not before.startswith("file://") or not before.endswith(ARTIFACTS):
                return None
            for earlier, now in ((before, artifacts), (_path(before), _path(artifacts))):  # addresses, and plain paths
                for table, column in _text_columns(connection):
                    connection.execute(
                        f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '  # noqa: S608 (names of the schema)
                        f'WHERE substr("{column}", 1, ?) = ?',
                        (now, len(earlier) + 1, len(earlier) + 1, f"{earlier}/"),
                    )
    finally:
        connection.close()
    return _path(before).removesuffix(ARTIFACTS)


def _text_columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        (table, column[1])
        for table in tables
        for column in connection.execute(f'PRAGMA table_info("{table}")')
        if "CHAR" in column[2].upper() or "TEXT" in column[2].upper()
    ]


def _path(uri: str) -> str:
    return unquote(uri.removeprefix("file://"))


def _mark(path: Path, artifacts: str) -> str:
    """Changes when the file is another one, or in another folder, or MLflow is another version."""
    return f"mlflow {version('mlflow')} inode {path.stat().st_ino} {artifacts}"


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
