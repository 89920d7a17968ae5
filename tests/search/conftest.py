"""One project for all searches; each test has a recipe of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from headrace.project import Project
from tests.projects import make_project
from tests.search.searching import Searching, make_searching

_numbers = itertools.count()


@pytest.fixture(scope="package")
def searched_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("search") / "clone")


@pytest.fixture
def searching(searched_project: Project, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Searching]:
    """Makes searches for a new recipe."""
    monkeypatch.chdir(searched_project.root)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return make_searching(searched_project, f"searched-{next(_numbers)}")
