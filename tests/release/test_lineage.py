"""The lineage of a version."""

from __future__ import annotations

import pytest

from headrace.data.versions import data_version
from headrace.errors import UsageError
from headrace.project import Project
from headrace.release.lineage import trace_version
from headrace.serving.packaging import package
from headrace.settings import Settings
from headrace.tracking import registry
from headrace.tracking.artifact import content_hash
from headrace.tracking.database import deleted_in_mlflow
from headrace.tracking.runs import client
from tests.projects import git
from tests.release.candidates import SERVING, decide, finish, new_recipe, released


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
