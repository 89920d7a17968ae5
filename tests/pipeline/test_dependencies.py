"""The dependencies in dvc.yaml: each stage names all code that it can reach by imports, custom classes' imports included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from headrace.data.ingest import ingest
from headrace.pipeline.dvc import reproduce
from headrace.pipeline.stages import IMPORT, STAGES
from headrace.plugins import custom_sources
from headrace.project import Project
from headrace.recipe.recipe import load_recipe, recipe_names
from headrace.release.up_to_date import snapshot
from headrace.tracking import provenance
from tests.import_closure import closure, imported, modules
from tests.paths import ROOT
from tests.pipeline.commands import dvc
from tests.projects import git

WITHOUT = {
    "headrace.console": "prints progress; nothing that a stage writes comes from it",
    "headrace.errors": "messages; a stage that raises one writes nothing",
    "headrace.installation": "where the files of Headrace are",
    "headrace.processes": "garbage collection and the end of processes",
    "headrace.project": "paths: a stage that reads or writes elsewhere fails, because they are its deps and outs",
    "headrace.recipe.synonyms": "suggestions in messages about unknown names",
    "headrace.renamed": "messages for old names",
    "headrace.spreadsheets": "opens workbooks at ingest, and stages read the Parquet that ingest has stored",
    "headrace.settings": "ports and servers; no setting changes what a stage computes",
}
"""Modules that no stage depends on, and why: an edit of a message should not train every model again."""
SERVED = "runs the served model for its answers, which this stage does not ask for"
SECTION = "a section of the recipe that this stage does not read"
WITHOUT_BY_STAGE = {
    "validate": {"bentos": SERVED},
    "prepare": {"bentos": SERVED},
    "train": {
        "bentos": SERVED,
        "headrace.recipe.compress": SECTION,
        "headrace.recipe.gate": SECTION,
        "headrace.recipe.monitor": SECTION,
        "headrace.recipe.refresh": SECTION,
        "headrace.recipe.search": SECTION,
        "headrace.recipe.serve": SECTION,
        "headrace.tracking": "logs the run in MLflow; weights and learning curves do not depend on it",
    },
    "export": {"headrace.tracking": "hashes of custom code and runs in MLflow; the graph does not depend on them"},
    "evaluate": {},
    "import_model": {
        "headrace.data": "how much memory is free",
        "headrace.runtime.http": "how errors are answered",
        "headrace.tracking": "names of served files",
        "headrace.task_types": "a task type of the project, which an imported model does not use",
        **{
            f"headrace.models.{path.stem}": "a network of the project, which an imported model does not use"
            for path in (ROOT / "headrace" / "models").glob("*.py")
            if path.stem not in ("__init__", "onnx_export", "onnx_inference", "parity", "schema")
        },
    },
}


def dependencies(stage: str) -> list[str]:
    """Code that dvc.yaml names for a stage of a recipe without custom classes."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    deps = content["stages"][stage]["do"]["deps"]
    return [dep for dep in deps if dep.startswith(("headrace/", "bentos/"))]


def reached(stage: str) -> set[str]:
    """Files that the stage's function can reach; packages without code of their own are left out."""
    tree = ast.parse((ROOT / "headrace" / "pipeline" / "stages.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == stage)
    start = {*imported(function), "headrace.recipe.recipe"}  # `main` reads the recipe
    files = {modules()[name] for name in closure(start, [*WITHOUT, *WITHOUT_BY_STAGE[stage]])}
    return {file.relative_to(ROOT).as_posix() for file in files if not has_no_code(file)}


def has_no_code(file: Path) -> bool:
    """Whether the file is a package with nothing but a docstring, a version number or imports (which are followed)."""
    nodes = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    return file.name == "__init__.py" and all(isinstance(node, nodes) for node in ast.parse(file.read_text()).body)


def is_inside(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", [*STAGES, IMPORT])
def test_a_stage_depends_on_all_code_that_it_can_reach(stage: str) -> None:
    missing = {file for file in reached(stage) if not any(is_inside(file, dep) for dep in dependencies(stage))}
    assert missing == set()


@pytest.mark.parametrize("stage", [*STAGES, IMPORT])
def test_a_stage_depends_on_no_code_that_it_cannot_reach(stage: str) -> None:
    files = reached(stage)
    assert [dep for dep in dependencies(stage) if not any(is_inside(file, dep) for file in files)] == []
    for dep in dependencies(stage):
        assert (ROOT / dep).exists(), dep


def test_all_recipes_are_listed() -> None:
    listed = next(item["recipes"] for item in yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"] if "recipes" in item)
    assert sorted(listed) == recipe_names(Project(ROOT))


# Custom classes.

BLOCKS = """
import torch
from torch import nn


class Block(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))
"""


@pytest.fixture
def with_helper(project: Project) -> Project:
    """A project whose recipe `tiny` has a custom model in `gated.py`, which imports its layer from `blocks.py`."""
    example = (ROOT / "docs" / "examples" / "gated.py").read_text()
    assert "nn.Linear(" in example
    (project.root / "gated.py").write_text(
        example.replace("import torch\n", "import torch\nfrom blocks import Block\n", 1).replace("nn.Linear(", "Block(", 1)
    )
    (project.root / "blocks.py").write_text(BLOCKS)
    fields = yaml.safe_load((project.recipes / "tiny.yaml").read_text())
    fields |= {"model": {"name": "gated:GatedMLP", "width": 4}, "train": {**fields["train"], "epochs": 1}}
    (project.recipes / "tiny.yaml").write_text(yaml.safe_dump(fields))
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "A custom model")
    return project


def test_an_edit_of_a_module_that_a_custom_model_imports_trains_again(with_helper: Project) -> None:
    recipe = load_recipe("tiny", with_helper)
    ingest(recipe, with_helper, lambda line: None)
    for stage in ("validate", "prepare", "train"):
        assert reproduce(stage, recipe, with_helper).ran
    assert not reproduce("train", recipe, with_helper).ran
    printed = dvc(with_helper, "repro", "train@tiny")
    assert "Running stage 'custom_code@tiny'" in printed and "Stage 'train@tiny' didn't change" in printed
    git(with_helper.root, "add", "--all")
    git(with_helper.root, "commit", "--quiet", "--message", "dvc.yaml lists the recipe")
    sources = custom_sources(recipe.custom_classes, with_helper.root)
    assert [path.name for path in sources] == ["gated.py", "blocks.py"]
    assert not provenance.changes(with_helper, sources).git_commit.endswith("-dirty")
    before = snapshot(recipe, with_helper)

    (with_helper.root / "blocks.py").write_text(BLOCKS.replace("torch.relu", "torch.tanh"))
    assert snapshot(recipe, with_helper) != before
    assert provenance.changes(with_helper, sources).git_commit.endswith("-dirty")
    assert not reproduce("prepare", recipe, with_helper).ran
    assert "Running stage 'train@tiny'" in dvc(with_helper, "repro", "train@tiny")
    assert not reproduce("train", recipe, with_helper).ran


def test_a_recipe_that_no_longer_has_custom_classes_leaves_their_list(with_helper: Project) -> None:
    def listed() -> tuple[dict[str, str], list[str]]:
        recipes, custom, _ = yaml.safe_load((with_helper.root / "dvc.yaml").read_text())["vars"]
        return recipes["recipes"]["tiny"], custom["custom"]

    recipe = load_recipe("tiny", with_helper)
    ingest(recipe, with_helper, lambda line: None)
    reproduce("validate", recipe, with_helper)
    code = {"task_type": "headrace/task_types", "model": "artifacts/tiny/custom_code/model.json"}
    assert listed() == (code, ["tiny"])
    fields = yaml.safe_load((with_helper.recipes / "tiny.yaml").read_text()) | {"model": {"name": "mlp", "hidden": [4]}}
    (with_helper.recipes / "tiny.yaml").write_text(yaml.safe_dump(fields))
    reproduce("validate", load_recipe("tiny", with_helper), with_helper)
    assert listed() == ({"task_type": "headrace/task_types", "model": "headrace/models"}, [])
