"""Fixtures for all tests: a fresh project, free ports, no settings from the environment."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from headrace.project import Project
from tests.bento_projects import built  # noqa: F401
from tests.docker_engine import docker_engine  # noqa: F401
from tests.ports import lease
from tests.projects import make_project

pytest_plugins = ["tests.workers"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project, which is also the working folder."""
    made = make_project(tmp_path / "clone")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread than on several."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def free_ports() -> Iterator[Callable[[], dict[str, str]]]:
    """Each call returns environment variables with ports that nothing else uses."""
    with contextlib.ExitStack() as held:

        def take() -> dict[str, str]:
            ports = held.enter_context(lease())
            names = ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT", "MLFLOW_PORT", "PREFECT_PORT")
            return {f"HEADRACE_{name}": str(port) for name, port in zip(names, ports, strict=False)}

        yield take


@pytest.fixture(autouse=True)
def _no_settings_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes settings from the environment, except those with which CI chooses the Docker engine."""
    for name in list(os.environ):
        if name.startswith("HEADRACE_") and name not in (
            "HEADRACE_BASE_IMAGE",
            "HEADRACE_REQUIRE_DOCKER",
            "HEADRACE_DOCKER_HOST",
        ):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _umask_of_the_user() -> Iterator[None]:
    """Undoes the private umask that a command sets for its process, which is the tests' own where they call `main`."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session", autouse=True)
def _own_user_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the list of the user's projects out of the tests, and those of the tests out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


_elsewhere: set[str] = set()
"""Names of modules outside of the projects of tests: looking at all of them again after each test takes long."""


@pytest.fixture(autouse=True)
def _no_modules_of_other_projects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forgets the modules of a test's project: those of the next one can have the same names."""
    import_path = [*sys.path]
    yield
    sys.path[:] = import_path
    temporary = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - _elsewhere:
        spec = getattr(sys.modules[name], "__spec__", None)
        places = [spec.origin, *(spec.submodule_search_locations or ())] if isinstance(spec, ModuleSpec) else []
        if any(place and str(place).startswith(temporary) for place in places):
            del sys.modules[name]
        else:
            _elsewhere.add(name)
