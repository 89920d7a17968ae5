"""A project with a released model, and past data for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.project import Project
from tests.backfill.released import ROWS, Released
from tests.projects import table
from tests.release.candidates import new_recipe, released


@pytest.fixture(scope="session")
def model(built: Project) -> Released:
    recipe = new_recipe(built)
    version = released(recipe, built)
    return Released(built, version)


@pytest.fixture(scope="session")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Past rows as CSV: with an id, and a bad value in one row."""
    frame = table(ROWS, seed=5)
    frame.insert(0, "customer", range(1, ROWS + 1))
    path = tmp_path_factory.mktemp("past") / "past.csv"
    frame.to_csv(path, index=False)
    lines = path.read_text().splitlines()
    lines[500] = lines[500].replace(lines[500].split(",")[1], "many", 1)
    path.write_text("\n".join(lines) + "\n")
    return path
