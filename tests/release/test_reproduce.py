"""A version trained again from its own commit and data: the same bytes, or a clear word on why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from headrace.data.batches import add_batch
from headrace.data.ingest import ingest
from headrace.data.versions import data_version
from headrace.errors import DataError, NotReproduced, UsageError
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release.extract import extract
from headrace.release.reproduce import reproduce
from headrace.tracking import registry
from headrace.tracking.registry import Version
from headrace.tracking.sources import collect
from headrace.tracking.version_identity import identity_of
from tests.paths import ROOT
from tests.projects import git, table


def trained(project: Project, name: str) -> Recipe:
    recipe = load_recipe(name, project)
    ingest(recipe, project, lambda line: None)
    for stage in STAGES.values():
        stage(recipe, project)
    return recipe


def released(project: Project, name: str = "tiny") -> Version:
    recipe = trained(project, name)
    return registry.register_trained(recipe, data_version(project, name), project)


def released_by_an_older_headrace(project: Project, name: str = "tiny") -> Version:
    """It kept no copy of what a version was made from."""
    recipe = trained(project, name)
    version = data_version(project, name)
    identity = identity_of(recipe, version, collect(recipe, version, project), project)
    older = {name: value for name, value in identity.items() if name not in ("source", "uncommitted")}
    return registry.register(recipe, project, older)


@pytest.mark.exhaustive
def test_a_version_trained_again_has_the_same_bytes_after_code_and_data_moved_on(project: Project) -> None:
    version = released(project)
    table(60, seed=2).to_csv(project.root / "more.csv", index=False)
    add_batch(load_recipe("tiny", project), project.root / "more.csv", project, lambda line: None)
    recipe = project.recipes / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 7", "seed: 8"))
    git(project.root, "commit", "--quiet", "--all", "--message", "Another seed")
    found = reproduce(version.name, project, lambda line: None)
    assert found.identical and found.largest_difference == 0.0
    assert found.code == f"commit {git(project.root, 'rev-parse', 'HEAD~1')[:12]}"
    assert found.metrics == found.metrics_now and "accuracy" in found.metrics
    assert not list((project.state / "reproductions").iterdir()), "nothing is left behind"


def test_data_that_is_gone_and_another_environment_are_reported(project: Project) -> None:
    version = released(project)
    lock = project.root / "requirements.lock"
    with lock.open("a") as file:
        file.write("another==1.0\n")
    with pytest.raises(UsageError, match=r"another requirements\.lock") as caught:
        reproduce(version.name, project, lambda line: None)
    assert "trace tiny@1 --extract FOLDER" in str(caught.value.hint)
    git(project.root, "checkout", "--quiet", "--", "requirements.lock")
    for batch in project.raw_data("tiny").glob("*.parquet"):
        batch.unlink()
    shutil.rmtree(project.root / ".dvc" / "cache")
    with pytest.raises(DataError, match="neither in data/ nor in DVC's cache"):
        reproduce(version.name, project, lambda line: None)


EXAMPLE = ROOT / "docs" / "examples" / "gated.py"


def write_gated_recipe(project: Project, name: str) -> Path:
    """A recipe with a custom model; neither is committed."""
    (project.root / "gated.py").write_text(EXAMPLE.read_text())
    fields = yaml.safe_load((project.recipes / "tiny.yaml").read_text())
    fields |= {"name": name, "model": {"name": "gated:GatedMLP", "width": 8}, "train": {**fields["train"], "epochs": 2}}
    path = project.recipes / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def test_what_was_never_committed_is_trained_again_from_the_copy_that_its_version_keeps(project: Project) -> None:
    recipe = write_gated_recipe(project, "fresh")
    version, text = released(project, "fresh"), recipe.read_text()
    assert version.identity["git_commit"] == f"{git(project.root, 'rev-parse', 'HEAD')}-dirty"
    assert version.identity["uncommitted"] == "gated.py, recipes/fresh.yaml"
    recipe.unlink()
    (project.root / "gated.py").write_text(EXAMPLE.read_text().replace("= self.head(", "= 2 * self.head("))
    (project.root / "data.dvc").unlink()
    shutil.rmtree(project.data)
    for tree in (project.root / ".dvc" / "cache").rglob("*.dir"):
        tree.unlink()  # nothing but the version names its data
    found = reproduce(version.name, project, lambda line: None)
    assert found.identical and "gated.py, recipes/fresh.yaml from the copy kept with fresh@1" in found.code

    place = project.state / "extracted"
    assert "commit " in extract(version.name, place, project)
    assert (place / "recipes" / "fresh.yaml").read_text() == text
    assert (place / "gated.py").read_text() == EXAMPLE.read_text()
    assert data_version(Project(place), "fresh").md5 == version.identity["data_md5"]
    with pytest.raises(UsageError, match="not an empty folder"):
        extract(version.name, place, project)


def test_uncommitted_code_is_trained_again_as_it_is_and_a_difference_is_reported(project: Project) -> None:
    write_gated_recipe(project, "tiny")
    version = released_by_an_older_headrace(project)
    assert version.identity["git_commit"].endswith("-dirty")
    assert reproduce(version.name, project, lambda line: None).code == "the working tree"
    (project.root / "gated.py").write_text(EXAMPLE.read_text().replace("= self.head(", "= 2 * self.head("))
    with pytest.raises(NotReproduced, match="tiny@1 trained again on cpu differs"):
        reproduce(version.name, project, lambda line: None)
    with (project.recipes / "tiny.yaml").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UsageError, match="a recipe that was never committed and has changed"):
        reproduce(version.name, project, lambda line: None)
