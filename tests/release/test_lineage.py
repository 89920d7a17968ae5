"""The lineage of a version."""

from __future__ import annotations

from headrace.project import Project
from headrace.release.lineage import trace_version
from headrace.settings import Settings
from headrace.tracking.artifact import content_hash
from tests.projects import git
from tests.release.candidates import new_recipe, released


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
