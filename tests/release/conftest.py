"""One project whose services run for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from headrace.services import up
from tests.projects import make_project
from tests.release.live import Live


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], dict[str, str]]) -> Iterator[Live]:
    """Services up, the recipe `tiny` released once."""
    found = Live(make_project(tmp_path_factory.mktemp("live") / "clone"), free_ports())
    try:
        found.run("run", "tiny")
        yield found
    finally:
        up.down(found.project.using(found.settings))
