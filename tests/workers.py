"""A pytest plugin that divides tests among workers (`pytest -n 2`) and ends processes that tests leave running."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

GROUPS = (
    # Tests that share a project with running services (fixture `live`), in two groups so that none is the longest by far.
    ("tests/release/test_recovery.py", "tests/release/test_faults.py", "tests/release/test_load.py"),
    ("tests/kills/test_kill_matrix.py",),
    ("tests/test_docs.py",),
    ("tests/release/test_release.py", "tests/release/test_rollback.py", "tests/release/test_every_recipe.py"),
    ("tests/benchmarks/test_benchmarks.py",),
    # the base image that the Docker engine builds once
    ("tests/serving/replicas/test_docker_runner.py", "tests/serving/packaging/test_packaging.py"),
    # the fixture `built`
    (
        "tests/release/test_decision.py",
        "tests/release/test_lineage.py",
        "tests/release/test_record.py",
        "tests/tracking/test_registry.py",
        "tests/pipeline/test_dvc.py",
        "tests/training/test_run.py",
        "tests/training/test_distributed.py",
    ),
    ("tests/services/test_services.py",),
    ("tests/serving/rollout/test_rolling.py",),
    # the fixture `service`
    (
        "tests/services/api/test_batches.py",
        "tests/services/api/test_catalogue.py",
        "tests/services/api/test_commands.py",
        "tests/services/api/test_feedback.py",
        "tests/services/api/test_feedback_file.py",
        "tests/services/api/test_openapi.py",
    ),
)
"""The slowest first: a group that begins last leaves the other workers idle. Every other file is its own group."""
PLACES = {file: (group, place) for group, files in enumerate(GROUPS) for place, file in enumerate(files)}
LAST = (len(GROUPS), 0)
SPREAD = "tests/kills/test_kill_matrix.py::test_a_flow_ends_as_usual_wherever_it_is_killed"
"""A test that takes hours: each of its parameters is a group."""
RUN = "RUN_OF_THE_TESTS"
"""Environment variable that all processes started by tests inherit, to find those that are left."""


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


class Groups(LoadScopeScheduling):
    """Gives a worker a whole group at a time. (xdist's `--dist loadgroup` does not support the node ids of pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        if nodeid.startswith(SPREAD):
            return nodeid
        return GROUPS[PLACES[file][0]][0] if file in PLACES else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Returns this scheduler, unless `--dist` requests another."""
    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with the slow groups; in one process the tests keep their order."""
    if is_worker(config):
        items.sort(key=lambda item: PLACES.get(file_of(item.nodeid), LAST))


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):
        os.environ[RUN] = secrets.token_hex(8)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends processes that tests left running: after Ctrl-C or the death of a worker, fixtures do not clean up."""
    token = os.environ.get(RUN)
    if is_worker(config) or token is None:
        return
    left = processes_of(token)
    for process in left:
        with contextlib.suppress(psutil.Error):
            print(f"ending a process that a test left running: {' '.join(process.cmdline())[:150]}", file=sys.stderr)
            process.kill()
    psutil.wait_procs(left, timeout=10)


def processes_of(token: str) -> list[psutil.Process]:
    """Returns the processes that inherited `token`, except this one and its ancestors."""
    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(RUN) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
