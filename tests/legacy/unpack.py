"""Unpacks the fixture into a folder: `python unpack.py legacy.tar.xz FOLDER`. Needs the standard library only."""

from __future__ import annotations

import lzma
import sqlite3
import sys
import tarfile
from pathlib import Path

ROOT_WAS = "/headrace-before-the-move"
"""What stands in the fixture for the folder that the project lies in."""
COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "logged_model_tags": ("tag_value",),
    "model_versions": ("source", "storage_location"),
}
"""Of MLflow's database: where the folder's name stands."""


def unpack(archive: Path, folder: Path) -> Path:
    """The project in `folder`, as if it had been released there; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with lzma.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        tar.extractall(folder, filter="data")
    now = str(folder.resolve())
    database = sqlite3.connect(folder / "mlruns" / "mlflow.db", isolation_level=None)
    for table, columns in COLUMNS.items():
        for column in columns:
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (ROOT_WAS, now))
    database.close()
    for path in [entry for entry in folder.rglob("*") if entry.is_file() and ".git" not in entry.parts]:
        content = path.read_bytes()
        if path.name != "mlflow.db" and ROOT_WAS.encode() in content:
            path.write_bytes(content.replace(ROOT_WAS.encode(), now.encode()))
    return folder


if __name__ == "__main__":
    print(unpack(Path(sys.argv[1]), Path(sys.argv[2])))
