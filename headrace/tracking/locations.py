"""The absolute paths in MLflow's database, which change when a project is restored in another folder."""

from __future__ import annotations

import sqlite3
from pathlib import Path

COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "logged_model_tags": ("tag_value",),
    "model_versions": ("source", "storage_location"),
}
"""Tables and columns with a folder's path or URI."""


def move_locations(database: Path, before: str, now: str) -> None:
    """Replaces the project's folder `before` by `now` in all locations of artifacts."""
    connection = sqlite3.connect(database)
    try:
        with connection:
            for table, columns in COLUMNS.items():
                for column in columns:
                    for old, new in ((Path(before).as_uri(), Path(now).as_uri()), (before, now)):
                        connection.execute(
                            f"UPDATE {table} SET {column} = replace({column}, ? || '/', ? || '/') "  # noqa: S608 (constants)
                            f"WHERE instr({column}, ? || '/')",
                            (old, new, old),
                        )
    finally:
        connection.close()
