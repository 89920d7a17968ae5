"""A version trained again from its own commit and data: the same bytes, or a clear word on why not."""

from __future__ import annotations

import pytest
import yaml

from headrace.data.batches import add_batch
from headrace.data.ingest import ingest
from headrace.data.versions import data_version
from headrace.errors import DataError, NotReproduced, UsageError
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.release.reproduce import reproduce
from headrace.tracking import registry
from headrace.tracking.registry import Version
from tests.paths import ROOT
from tests.projects import git, table


def released(project: Project, name: str = "tiny") -> Version:
    recipe = load_recipe(name, project)
    ingest(recipe, project, lambda line: None)
    for stage in STAGES.values():
        stage(recipe, project)
    return registry.register(recipe, project, registry.identity_of(recipe, data_version(project, name), project))


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
    assert "git checkout" in str(caught.value.hint)
    git(project.root, "checkout", "--quiet", "--", "requirements.lock")
    for batch in project.raw_data("tiny").glob("*.parquet"):
        batch.unlink()
    for entry in (project.root / ".dvc" / "cache").rglob("*.dir"):
        entry.chmod(0o644)
        entry.write_text("[{half")
    with pytest.raises(DataError, match="neither in data/ nor in DVC's cache"):
        reproduce(version.name, project, lambda line: None)


def test_uncommitted_code_is_trained_again_as_it_is_and_a_difference_is_reported(project: Project) -> None:
    example = ROOT / "docs" / "examples" / "gated.py"
    (project.root / "gated.py").write_text(example.read_text())
    fields = yaml.safe_load((project.recipes / "tiny.yaml").read_text())
    fields |= {"model": {"name": "gated:GatedMLP", "width": 8}, "train": {**fields["train"], "epochs": 2}}
    (project.recipes / "tiny.yaml").write_text(yaml.safe_dump(fields))
    version = released(project)
    assert version.identity["git_commit"].endswith("-dirty")
    assert reproduce(version.name, project, lambda line: None).code == "the working tree"
    (project.root / "gated.py").write_text(example.read_text().replace("= self.head(", "= 2 * self.head("))
    with pytest.raises(NotReproduced, match="tiny@1 trained again on cpu differs"):
        reproduce(version.name, project, lambda line: None)
    with (project.recipes / "tiny.yaml").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UsageError, match="a recipe that was never committed and has changed"):
        reproduce(version.name, project, lambda line: None)
