"""One project whose services run for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from headrace.services import up
from tests.projects import make_project
from tests.release.live import Live, another_recipe


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], dict[str, str]]) -> Iterator[Live]:
    """Services up, the recipe `tiny` released once."""
    found = Live(make_project(tmp_path_factory.mktemp("live") / "clone"), free_ports())
    try:
        found.run("run", "tiny")
        yield found
    finally:
        up.down(found.project.using(found.settings))


@pytest.fixture(scope="session")
def second(live: Live) -> str:
    """A second model of the project `live`: its version 1 is released, with two replicas."""
    name = another_recipe(live, "second", serve={"replicas": 2})
    live.run("run", name)
    return name
