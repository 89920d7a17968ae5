"""Replicas as local processes: their records."""

from __future__ import annotations

import pytest

from headrace.errors import DamagedFile
from headrace.project import Project
from headrace.serving.replicas.process_runner import ProcessRunner


def test_a_damaged_record_of_a_replica_is_an_error_since_its_process_may_still_run(
    project: Project, runner: ProcessRunner
) -> None:
    folder = project.state / "replicas"
    folder.mkdir(parents=True)
    (folder / "digits-v1-a1b2.json").write_text('{"id": "digits-v1-a1b2"')
    with pytest.raises(DamagedFile, match="not valid JSON") as damaged:
        runner.list()
    assert damaged.value.where == str(folder / "digits-v1-a1b2.json")
    assert damaged.value.hint == "headrace down, then headrace up"
