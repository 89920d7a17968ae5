"""What a roll-out says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.recipe.serve import RolloutConfig
from headrace.release.deploy import headline
from headrace.serving.gateway import gateway
from headrace.serving.packaging.code_files import CODE
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.settings import Settings
from headrace.tracking.registry import Version

SETTINGS = Settings(access="open")
SECOND = Version("digits", "2", "r2", Path(), {})


@pytest.mark.parametrize(("strategy", "trial"), [("rolling", ""), ("canary", ", as a canary first")])
def test_a_trial_is_announced_only_where_another_version_serves(tmp_path: Path, strategy: str, trial: str) -> None:
    project = Project(tmp_path)
    recipe = load_recipe("digits", Project(CODE))
    how = RolloutConfig.model_validate({"strategy": strategy, "bake": "5m"})
    recipe = recipe.model_copy(update={"serve": recipe.serve.model_copy(update={"rollout": how})})
    plain = "digits@2, 2 replicas as processes"
    assert headline(recipe, SECOND, project.using(SETTINGS)) == plain, "nothing serves"
    endpoint = Replica("digits-v2-0001", ReplicaSpec("digits", "2", "digits:2-0000"), Path("digits.sock"))
    gateway.update_model(project.using(SETTINGS), "digits", [endpoint])
    assert headline(recipe, SECOND, project.using(SETTINGS)) == plain, "it serves itself"
    gateway.update_model(project.using(SETTINGS), "digits", [replace(endpoint, spec=replace(endpoint.spec, version="1"))])
    assert headline(recipe, SECOND, project.using(SETTINGS)) == plain + trial
