"""Makes the database templates of this installation: `python -m headrace.services.make_templates`, part of `make setup`."""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.services.prefect_database import run_migrations
from headrace.tracking.database import create_database
from headrace.tracking.database_templates import make_template


def make_templates() -> bool:
    """Makes the templates of Prefect and MLflow that do not exist. False when the environment's folder is not writable."""
    with ThreadPoolExecutor(2) as pool:
        prefect = pool.submit(make_template, "prefect", _create_prefect_database)
        mlflow = pool.submit(make_template, "mlflow", lambda path: create_database(path, "file:///artifacts"))
        return prefect.result() is not None and mlflow.result() is not None


def _create_prefect_database(path: Path) -> None:
    """Runs Prefect's migrations beside the template's folder, and copies the database as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "prefect.db"
        run_migrations(database)
        path.write_bytes(database.read_bytes())


def main() -> None:
    """Without templates everything works, only slower: a failure is printed and does not stop `make setup`."""
    try:
        reason = None if make_templates() else f"{sys.prefix} is not writable"
    except HeadraceError as error:
        reason = str(error)
    if reason:
        sys.stderr.write(f"no database templates, so each new project runs all migrations at its first start: {reason}\n")


if __name__ == "__main__":
    main()
