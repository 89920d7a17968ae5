"""The fixture `docker_engine`: a Docker engine with the base image and wheels that tests need. Import it in a conftest.

Without them such tests are skipped with the reason; with HEADRACE_REQUIRE_DOCKER=1 (set by .ci/run) they fail instead.
"""

from __future__ import annotations

import os

import pytest

from headrace.errors import HeadraceError
from headrace.serving.packaging.code_files import CODE
from headrace.serving.packaging.docker import Docker
from headrace.serving.packaging.image import find_image
from headrace.serving.packaging.wheelhouse import is_current
from headrace.settings import Settings


@pytest.fixture(scope="session")
def docker_engine() -> Settings:
    """Settings with an engine that responds and has what images are built from."""
    settings = Settings()
    if reason := _why_not(settings):
        if os.environ.get("HEADRACE_REQUIRE_DOCKER") == "1":
            pytest.fail(f"HEADRACE_REQUIRE_DOCKER=1, but {reason}")
        pytest.skip(reason)
    return settings


def _why_not(settings: Settings) -> str | None:
    try:
        docker = Docker.connect(settings)
    except HeadraceError as error:
        return error.message
    if find_image(docker, settings.base_image) is None:
        return f"the base image {settings.base_image} is not on this engine (HEADRACE_BASE_IMAGE names another)"
    if not is_current(CODE / "wheelhouse"):
        return "the wheelhouse for the current requirements does not exist (python -m headrace.serving.packaging)"
    return None
