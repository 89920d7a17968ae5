"""The lineage of a version, and what of it somebody changed in MLflow by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.cli.inspect import status
from headrace.cli.run import _is_unchanged
from headrace.data.versions import data_version
from headrace.errors import UsageError
from headrace.project import Project
from headrace.release import up_to_date
from headrace.release.lineage import trace_version
from headrace.serving.packaging import package
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from headrace.tracking import registry
from headrace.tracking.artifact import content_hash
from headrace.tracking.database import deleted_in_mlflow
from headrace.tracking.runs import client
from tests.projects import git
from tests.release.candidates import (
    LENIENT,
    SERVING,
    decide,
    finish,
    new_recipe,
    register_other_bytes,
    released,
    with_gate,
)


def test_the_id_of_a_response_leads_to_run_data_and_commit(built: Project) -> None:
    recipe = new_recipe(built)
    version = released(recipe, built)
    found = trace_version(f"{version.name}:7f3c9a", built.using(Settings()))
    links = {link["link"]: link["id"] for link in found["chain"]}
    assert links["run"] == version.run_id
    assert links["data"] == "aaa.dir"
    assert links["bento"] == "b:1" and "image" not in links
    assert links["git commit"].removesuffix("-dirty") == git(built.root, "rev-parse", "HEAD")
    assert links["served files"] == f"sha256 {content_hash(version.folder)}"
    assert found["aliases"] == ["champion"] and found["released_at"]
    assert trace_version(recipe.name, built.using(Settings()))["version"] == "1"


def test_a_version_that_was_deleted_from_mlflow_is_traced_from_its_bento(built: Project) -> None:
    recipe = new_recipe(built)
    version = registry.register_trained(recipe, data_version(built, "tiny"), built)
    tag = package(version.folder, recipe.name, "1", version.identity, built).tag
    finish(recipe, decide(recipe, version, built), built, {**SERVING, "bento": tag})
    served = {recipe.name: ("1", version.run_id)}
    assert deleted_in_mlflow(served, built) == {}
    registry.drop_alias(recipe.name, "champion", built)
    assert trace_version(f"{recipe.name}@champion", built.using(Settings()))["missing"] == []

    client(built).delete_run(version.run_id)
    assert deleted_in_mlflow(served, built) == {recipe.name: "run"}
    found = trace_version(version.name, built.using(Settings()))
    assert found["missing"] == [f"run {version.run_id} was deleted from MLflow, with its curves and metrics"]
    assert {link["link"]: link["get_it"] for link in found["chain"]}["run"] is None

    client(built).delete_model_version(recipe.name, "1")
    assert deleted_in_mlflow(served, built) == {recipe.name: "version"}
    for reference in (version.name, recipe.name, f"{recipe.name}@champion", f"{version.name}:7f3c9a"):
        found = trace_version(reference, built.using(Settings()))
        assert "it was deleted from MLflow" in found["missing"][0] and found["version"] == "1"
        assert {link["link"]: link["id"] for link in found["chain"]}["data"] == version.identity["data_md5"]
    with pytest.raises(UsageError, match="no version '9'"):
        trace_version(f"{recipe.name}@9", built)


def test_status_says_where_an_alias_moved_by_hand_points_and_the_named_command_is_not_idle(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether files have changed and replicas serve is given here: a release without servers leaves neither."""
    monkeypatch.chdir(built.root)
    monkeypatch.setattr(up_to_date, "is_unchanged", lambda recipe, project: True)
    monkeypatch.setattr(rolling, "is_serving", lambda spec, replicas, project: True)
    recipe = with_gate(new_recipe(built), beat_champion=LENIENT)
    name, first = recipe.name, released(recipe, built)
    second = register_other_bytes(recipe, built)
    finish(recipe, decide(recipe, second, built), built)

    def seen() -> tuple[str | None, Any, str]:
        shown = [CliRunner().invoke(status, options).stdout for options in (["--json"], [])]
        (model,) = (one for one in json.loads(shown[0])["models"] if one["name"] == name)
        return model["alias"], model["champion_in_mlflow"], shown[1]

    alias, champion, shown = seen()
    assert (alias, champion) == ("champion", None) and f"champion of {name}" not in shown
    assert _is_unchanged(recipe, built, as_json=True)

    registry.set_alias(first, registry.CHAMPION, built)
    alias, champion, shown = seen()
    assert (alias, champion) == (None, {"version": "1", "serves": "2", "hint": f"headrace run {name}"})
    assert f"MLflow's alias champion of {name} points to {name}@1; {name}@2 is in production, and that counts" in shown
    assert f"hint: headrace run {name} corrects the alias" in shown
    assert not _is_unchanged(recipe, built, as_json=True)

    registry.drop_alias(name, registry.CHAMPION, built)
    alias, champion, shown = seen()
    assert (alias, champion["version"]) == (None, None)
    assert f"MLflow's alias champion of {name} is missing; {name}@2 is in production" in shown

    decide(recipe, second, built)  # as the named command
    assert seen()[:2] == ("champion", None) and _is_unchanged(recipe, built, as_json=True)

    client(built).delete_model_version(name, "2")
    assert seen()[1] is None, "a version that is gone from MLflow can have no alias"
    registry.set_alias(first, registry.CHAMPION, built)
    assert seen()[1]["version"] == "1"
