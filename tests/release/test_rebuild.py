"""A released version whose package is gone: made again with the same bytes, from what is left of it."""

from __future__ import annotations

import shutil

import pytest

from headrace.data.versions import data_version
from headrace.errors import DataError, NotReproduced, RegistryError, UsageError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import history, journal, lookup
from headrace.release.deploy import is_packaged, package_version, require_released_bytes, serving_facts
from headrace.release.rebuild import Rebuilt, rebuild
from headrace.serving.packaging import find_bento
from headrace.tracking import registry
from headrace.tracking.artifact import content_hash
from headrace.tracking.registry import Version
from tests.bento_projects import run_stages
from tests.projects import git
from tests.release.candidates import decide, finish


def silent(line: str) -> None:
    pass


def release(project: Project) -> tuple[Recipe, Version]:
    """Everything of a release but its servers."""
    recipe = run_stages(project, "tiny")
    version = registry.register_trained(recipe, data_version(project, "tiny"), project)
    packaged = package_version(version, project, silent, version.identity["content_sha256"])
    facts = serving_facts(recipe, packaged, project.settings)
    finish(recipe, decide(recipe, version, project), project, facts)
    return recipe, version


def remove_bento(project: Project) -> None:
    shutil.rmtree(project.bentoml_home / "bentos")
    shutil.rmtree(project.bentoml_home / "models")


def again(project: Project) -> Rebuilt:
    """Rebuilds the version, and checks that it can be served with the released bytes."""
    found = rebuild("tiny@1", project, silent)
    entry = history.served(journal.entries(project, "tiny"))["1"]
    assert is_packaged(entry, project) and entry.facts["bento"] == found.bento
    require_released_bytes(entry, project)
    assert content_hash(find_bento(project, found.bento).model_path) == found.content_sha256
    return found


def test_each_source_is_taken_if_those_before_it_are_gone(project: Project) -> None:
    _, version = release(project)
    before = journal.entries(project, "tiny")
    found = again(project)
    assert not found.changed and journal.entries(project, "tiny") == before, "nothing was missing"

    remove_bento(project)
    found = again(project)
    assert found.changed and found.source == "MLflow"
    entry = journal.entries(project, "tiny")[-1]
    assert (entry.event, entry.version, entry.facts["source"]) == ("rebuilt", "1", "MLflow")

    shutil.rmtree(version.folder)
    found = again(project)
    assert found.source.startswith("the bento tiny:1-") and found.changed
    assert content_hash(registry.get("tiny@1", project).folder) == found.content_sha256, "MLflow has its files again"

    remove_bento(project)
    for folder in (project.mlruns / "artifacts").iterdir():
        shutil.rmtree(folder)  # also what the version was made from
    found = again(project)
    commit = git(project.root, "rev-parse", "HEAD")
    assert found.source == f"training again, with the code of commit {commit[:12]}"
    assert found.notes[0] == "MLflow has no files of tiny@1" and lookup.find("tiny@1", project).version.version == "1"
    assert history.in_force(journal.entries(project, "tiny")) is not None
    assert journal.last(project, "tiny") == before[-1], "a release goes on as before"


def test_versions_that_never_served_and_other_bytes_are_refused_and_nothing_is_overwritten(project: Project) -> None:
    _, version = release(project)
    with pytest.raises(UsageError, match="tiny@7 never served; known: 1"):
        rebuild("tiny@7", project, silent)
    with pytest.raises(UsageError, match="'tny' was never released; did you mean 'tiny'"):
        rebuild("tny@1", project, silent)
    remove_bento(project)
    graph = version.folder / "model.onnx"
    changed = graph.read_bytes() + b" "
    graph.write_bytes(changed)
    shutil.rmtree(project.root / ".dvc" / "cache")
    shutil.rmtree(project.raw_data("tiny"))
    with pytest.raises(DataError, match="neither in data/ nor in DVC's cache"):
        rebuild("tiny@1", project, silent)
    with (project.root / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    with pytest.raises(RegistryError, match=r"model\.onnx of tiny@1 changed: .* was registered") as caught:
        rebuild("tiny@1", project, silent)
    assert "move " in str(caught.value.hint) and graph.read_bytes() == changed
    assert journal.entries(project, "tiny")[-1].event == "released"


@pytest.mark.exhaustive
def test_training_that_gives_other_bytes_names_the_files(project: Project) -> None:
    release(project)
    entry = journal.last(project, "tiny")
    assert entry is not None
    files = {**entry.facts["files"], "model.onnx": "0" * 64}
    journal.record(project, "released", "tiny", "1", {**entry.facts, "content_sha256": "1" * 64, "files": files})
    remove_bento(project)
    shutil.rmtree(registry.get("tiny@1", project).folder)
    with pytest.raises(
        NotReproduced, match=r"differs from what was released: .*model\.onnx \(sha256 000000000000, now "
    ) as caught:
        rebuild("tiny@1", project, silent)
    assert "nothing was written" in caught.value.message and not (project.bentoml_home / "bentos").exists()
