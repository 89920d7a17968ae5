"""The `docker_engine` fixture: a Docker engine with the base image and wheels that tests need. Import it in a conftest.

Without them such tests are skipped and say why; with HEADRACE_REQUIRE_DOCKER=1 (as .ci/run sets it) they fail instead.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from headrace.errors import HeadraceError
from headrace.packaging.docker import Docker
from headrace.packaging.image import find_image
from headrace.packaging.sources import CODE
from headrace.packaging.wheelhouse import is_current
from headrace.settings import Settings


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Settings]:
    """Settings whose engine answers; containers that tests leave behind, also by failing, are removed at the end."""
    settings = Settings()
    if reason := _why_not(settings):
        if os.environ.get("HEADRACE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"HEADRACE_REQUIRE_DOCKER=1, but {reason}")
        pytest.skip(reason)
    before = _containers()
    yield settings
    if left := _containers() - before:
        subprocess.run(["docker", "rm", "--force", "--volumes", *left], check=False, capture_output=True)


def _why_not(settings: Settings) -> str | None:
    try:
        docker = Docker.connect(settings)
    except HeadraceError as error:
        return error.message
    if find_image(docker, settings.base_image) is None:
        return f"the base image {settings.base_image} is not on this engine (HEADRACE_BASE_IMAGE names another)"
    if not is_current(CODE / "wheelhouse"):
        return "there is no wheelhouse for today's requirements (make wheelhouse)"
    return None


def _containers() -> set[str]:
    """Containers that Headrace started, of whichever project."""
    done = subprocess.run(["docker", "ps", "--all", "--quiet", "--filter", "label=headrace.project"],
                          check=True, capture_output=True, text=True)
    return set(done.stdout.split())
