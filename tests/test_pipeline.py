"""DVC as the build system: what is unchanged is skipped, errors keep their class, and both doors give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.config import Recipe, load_recipe
from headrace.data.ingest import ingest
from headrace.errors import DataRejected, HeadraceError
from headrace.files import read_json
from headrace.pipeline import reproduce, unknown_in_pipeline
from headrace.project import Project
from headrace.stages import STAGES
from tests.conftest import make_project

MADE = ("validation.json", "prepared/schema.json", "prepared/train.parquet", "train/model.pt", "train/curves.csv",
        "export/model.onnx", "export/contract.json", "evaluation/metrics.json")  # fmt: skip


def dvc(project: Project, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["dvc", *arguments], cwd=project.root, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def edit(project: Project, **sections: dict[str, Any]) -> Recipe:
    path = project.recipes / "tiny.yaml"
    fields = yaml.safe_load(path.read_text())
    for section, changed in sections.items():
        fields[section] = {**fields[section], **changed}
    path.write_text(yaml.safe_dump(fields))
    return load_recipe("tiny", project)


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose first two stages ran through Headrace's door, and the others by hand."""
    project = make_project(tmp_path_factory.mktemp("piped") / "clone")
    recipe = load_recipe("tiny", project)
    ingest(recipe, project, lambda line: None)
    assert [reproduce(stage, recipe, project).ran for stage in ("validate", "prepare")] == [True, True]
    said = dvc(project, "repro", "evaluate@tiny")
    assert "Stage 'validate@tiny' didn't change, skipping" in said
    assert "Stage 'prepare@tiny' didn't change, skipping" in said
    return project


def test_both_doors_and_two_clones_give_the_same_bytes(piped: Project, built: Project) -> None:
    for name in MADE:
        assert (piped.artifacts("tiny") / name).read_bytes() == (built.artifacts("tiny") / name).read_bytes(), name


def test_what_was_made_by_hand_is_unchanged_through_the_other_door(piped: Project) -> None:
    recipe = load_recipe("tiny", piped)
    assert [reproduce(stage, recipe, piped).ran for stage in STAGES] == [False] * 5
    assert "up to date" in dvc(piped, "repro", "evaluate@tiny")


def test_the_environment_is_left_as_it_was(piped: Project) -> None:
    before = dict(os.environ)
    reproduce("validate", load_recipe("tiny", piped), piped)
    assert dict(os.environ) == before


def test_a_change_to_the_training_reruns_the_training_alone(piped: Project, capfd: pytest.CaptureFixture[str]) -> None:
    first = (piped.artifacts("tiny") / "train" / "model.pt").read_bytes()
    recipe = edit(piped, train={"epochs": 2})
    assert [reproduce(stage, recipe, piped).ran for stage in ("validate", "prepare", "train")] == [False, False, True]
    assert read_json(piped.artifacts("tiny") / "train" / "summary.json")["epochs"] == 2
    assert "epoch 2" in capfd.readouterr().err
    recipe = edit(piped, train={"epochs": 3})  # back: DVC has the result in its cache, so nothing is trained
    reproduce("train", recipe, piped)
    assert "epoch" not in capfd.readouterr().err
    assert (piped.artifacts("tiny") / "train" / "model.pt").read_bytes() == first
    assert read_json(piped.artifacts("tiny") / "train" / "summary.json")["epochs"] == 3
    assert reproduce("export", recipe, piped).ran is False


def test_what_concerns_no_stage_reruns_none(piped: Project) -> None:
    recipe = edit(piped, gate={"require": {"accuracy": ">= 0.5"}})
    assert [reproduce(stage, recipe, piped).ran for stage in ("prepare", "train", "evaluate")] == [False] * 3


def test_a_stages_error_comes_back_as_it_was_raised(piped: Project) -> None:
    (piped.recipes / "strict.yaml").write_text(
        (piped.recipes / "tiny.yaml").read_text().replace("name: tiny", "name: strict").replace("max_value: 50", "max_value: 1")
    )
    recipe = load_recipe("strict", piped)
    piped.raw("strict").mkdir()
    for batch in piped.raw("tiny").iterdir():
        (piped.raw("strict") / batch.name).write_bytes(batch.read_bytes())
    with pytest.raises(DataRejected, match="expect_column_values_to_be_between") as caught:
        reproduce("validate", recipe, piped)
    assert caught.value.where == "strict, all batches" and "correct the data" in str(caught.value.mend)
    assert not (piped.artifacts("strict") / "validation.json").exists()


def test_a_stage_that_is_killed_is_told(piped: Project) -> None:
    content = (piped.root / "dvc.yaml").read_text()
    recipe = load_recipe("tiny", piped)
    (piped.root / "dvc.yaml").write_text(content.replace("python -m headrace.stages validate ${item}", "kill -9 $$"))
    try:
        with pytest.raises(HeadraceError, match="validate@tiny ended without a word") as caught:
            reproduce("validate", recipe, piped)
        assert "dvc repro -s validate@tiny" in str(caught.value.mend)
    finally:
        (piped.root / "dvc.yaml").write_text(content)


def test_an_unknown_stage_is_told(piped: Project) -> None:
    with pytest.raises(HeadraceError, match="trian@tiny") as caught:
        reproduce("trian", load_recipe("tiny", piped), piped)
    assert caught.value.where == "dvc.yaml"


def test_a_new_recipe_adds_its_name_and_changes_nothing_else(project: Project) -> None:
    path = project.root / "dvc.yaml"
    before = path.read_text().splitlines()
    assert any(line.startswith("#") for line in before)
    (project.recipes / "new.yaml").write_text((project.recipes / "tiny.yaml").read_text().replace("name: tiny", "name: new"))
    with pytest.raises(HeadraceError):  # there is no data yet
        reproduce("prepare", load_recipe("new", project), project)
    after = path.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [("  - recipes: [tiny, pictures]", "  - recipes: [tiny, pictures, new]")]
    assert unknown_in_pipeline(project) == []
    (project.recipes / "new.yaml").unlink()
    assert unknown_in_pipeline(project) == ["new"]


@pytest.mark.parametrize("content", ["stages: {}\n", "vars: [\n", "vars:\n  - other: 1\n"])
def test_a_dvc_yaml_without_its_list_is_told(content: str, project: Project) -> None:
    (project.root / "dvc.yaml").write_text(content)
    with pytest.raises(HeadraceError, match="list of recipes") as caught:
        reproduce("prepare", load_recipe("tiny", project), project)
    assert "git checkout dvc.yaml" in str(caught.value.mend)
