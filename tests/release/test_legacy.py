"""A project released by commit 4271f0e, before the modules moved: it rolls back, reproduces and traces with current code.

tests/legacy/README.md says what the fixture holds. Bentos of all its models are served in
tests/serving/packaging/test_legacy_bento.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.project import Project
from headrace.release import journal
from headrace.services import up
from headrace.tracking import registry
from tests.legacy.unpack import unpack
from tests.paths import ROOT
from tests.projects import CODE
from tests.release.live import Live

LEGACY = ROOT / "tests" / "legacy"
FACTS: dict[str, Any] = json.loads((LEGACY / "facts.json").read_text())
SMALL = FACTS["versions"]["small@1"]


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], dict[str, str]]) -> Iterator[Live]:
    """The old project with current code, as after `git pull`. Its requirements.lock stays: reproduction compares it."""
    root = unpack(LEGACY / "legacy.tar.xz", tmp_path_factory.mktemp("legacy") / "project")
    for name in set(CODE) - {"requirements.lock", ".gitignore"}:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / name, root / name)
    found = Live(Project(root), free_ports())
    try:
        yield found
    finally:
        up.down(found.project.using(found.settings))


def test_the_history_reads_as_it_was_written(upgraded: Live) -> None:
    shown = [(entry["event"], entry["model"], entry["version"]) for entry in upgraded.json("history")]
    assert shown == [(entry["event"], entry["model"], entry["version"]) for entry in FACTS["history"]]
    assert all(entry.facts["runner"] == "process" for entry in journal.entries(upgraded.project) if entry.event == "released")


def test_a_version_is_traced_to_its_data_and_commit(upgraded: Live) -> None:
    links = {link["link"]: link["id"] for link in upgraded.json("trace", "small@1")["chain"]}
    assert links["data"] == SMALL["data_md5"] and links["git commit"] == SMALL["git_commit"]
    assert links["bento"] == SMALL["bento"] and links["run"] == SMALL["run_id"]
    assert links["served files"] == f"sha256 {SMALL['content_sha256']}"


def test_a_rollback_serves_the_bento_that_was_built_then(upgraded: Live) -> None:
    back = upgraded.json("rollback", "small", "--why", "colours")
    assert (back["version"], back["bento"], back["runner"]) == ("1", SMALL["bento"], "process")
    assert registry.aliased("small", "champion", upgraded.project) == "1"
    answer = upgraded.json("predict", "small", "--sample")
    assert answer["version"] == "1"
    assert upgraded.serving("small") == "1"


def test_a_version_is_reproduced_byte_for_byte_by_the_code_of_its_commit(upgraded: Live) -> None:
    found = upgraded.json("reproduce", "small@1")
    assert found["identical"] and found["content_sha256_now"] == SMALL["content_sha256"]
    assert found["code"] == f"commit {SMALL['git_commit'][:12]}"
    assert found["metrics"] == found["metrics_now"]
