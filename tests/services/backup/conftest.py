"""One filled project and its backup for the tests of this folder, which change copies only."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.project import Project
from headrace.services.backup.backup import back_up
from tests.services.backup.filled_project import make_filled_project


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_filled_project(tmp_path_factory.mktemp("backup") / "filled")


@pytest.fixture(scope="session")
def archive(filled: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backup of `filled`."""
    path = tmp_path_factory.mktemp("archive") / "project.backup"
    back_up(filled, str(path), lambda line: None)
    return path
