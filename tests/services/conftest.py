"""The project of the serving tests, for tests of the watchdog."""

from __future__ import annotations

from tests.serving.conftest import project, runner, settings  # noqa: F401
