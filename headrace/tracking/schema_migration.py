"""Brings the databases of MLflow and Prefect to the schema of the installed package, and keeps a copy from before.

Both packages number their schemas by alembic revisions, each in a file of its own with the one before it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from headrace.errors import DamagedFile, DiskFull, HeadraceError, NewerFile

FOLDERS = {
    "mlflow": "store/db_migrations/versions",
    "prefect": "server/database/_migrations/versions/sqlite",
}
"""Where a package has its revisions."""
REVISION = re.compile(r"""^(revision|down_revision)\b[^=\n]*=\s*["']([^"'\n]+)["']""", re.MULTILINE)
DATABASE_SECONDS = 60.0


def upgrade_schema(database: Path, package: str, upgrade: Callable[[], object]) -> Path | None:
    """Migrates a database of an older version of `package`; the caller holds a lock. Quick if there is nothing to do.

    Args:
        upgrade: runs the package's own migrations on the database.

    Returns:
        The copy from before, which is kept; None if the schema is the installed one already.

    Raises:
        NewerFile: a newer version of the package wrote the database, which is unchanged.
        HeadraceError: a migration failed; the database is as it was.
        DiskFull: too little space is left for the copy; the database is as it was.
    """
    found = schema_of(database)
    if found is None or found == (head := newest_revision(package)):
        return None
    if found not in revisions(package):
        raise NewerFile(
            f"{database.name} has schema {found}, which {package} {version(package)} (schema {head}) does not know: "
            f"a newer version wrote it",
            where=str(database),
            hint=f"install the version of Headrace that wrote it (make setup in that version), or restore a copy from before "
            f"the upgrade: {database.name}.schema-…",
        )
    copy = database.with_name(f"{database.name}.schema-{found}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    copy_database(database, copy)
    copy.chmod(0o600)
    try:
        upgrade()
        if (now := schema_of(database)) != head:
            raise HeadraceError(f"the schema is {now} after the migration")
    except Exception as error:
        copy_database(copy, database)
        raise HeadraceError(
            f"{database.name} could not be migrated from schema {found} to {head}, and is as it was: {error}",
            where=str(database),
            hint=f"install the earlier version of {package}, or report this; a copy is in {copy.name}",
        ) from error
    return copy


def schema_of(database: Path) -> str | None:
    """The alembic revision of a database; None for one that no migration has made."""
    try:
        with closing(
            sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=DATABASE_SECONDS)
        ) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:  # no such table, or a damaged or locked file, which its server reports
        return None
    except sqlite3.DatabaseError:
        return None
    return str(row[0]) if row else None


def revisions(package: str) -> dict[str, str | None]:
    """All revisions that the installed package knows, each with the one before it."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None  # both are dependencies
    found: dict[str, str | None] = {}
    for path in (Path(spec.origin).parent / FOLDERS[package]).glob("*.py"):
        fields = dict(REVISION.findall(path.read_text(encoding="utf-8")))
        if "revision" in fields:
            found[fields["revision"]] = fields.get("down_revision")
    return found


def newest_revision(package: str) -> str:
    """The revision that no other one follows."""
    found = revisions(package)
    return next(iter(found.keys() - {*found.values()}))


def copy_database(source: Path, place: Path) -> None:
    """Copies an SQLite database while others write to it; an existing one at `place` gets its content.

    Raises:
        DamagedFile: it cannot be read.
        DiskFull: no space is left; a new file is removed.
    """
    is_new = not place.exists()
    with (
        closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=DATABASE_SECONDS)) as before,
        closing(sqlite3.connect(place, timeout=DATABASE_SECONDS)) as now,
    ):
        try:
            before.backup(now)
            if is_new:
                now.execute("PRAGMA journal_mode = DELETE")  # one file; the application chooses its mode again
            return
        except sqlite3.DatabaseError as error:
            if is_new:
                place.unlink(missing_ok=True)
            if "full" in str(error):
                raise DiskFull(
                    f"no space left for a copy of {source.name}",
                    where=str(place.parent),
                    hint="free some space, then run the same command",
                ) from None
            raise DamagedFile(
                f"the database cannot be copied: {error}", where=str(source), hint="restore it from an earlier backup"
            ) from None


def use_write_ahead_log(path: Path) -> None:
    """Readers then do not wait for a writer; without it writers sometimes fail under load. The file keeps the mode.

    Before a server starts: it cannot change the mode of a database that several of its threads open at once.
    """
    with closing(sqlite3.connect(path, timeout=DATABASE_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
