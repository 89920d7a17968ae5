"""Recipes, tables and a built project for tests of task types, models, training, export, registry and release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import yaml

from headrace.data.ingest import ingest
from headrace.models.schema import Schema
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe, parse_recipe
from headrace.task_types.lookup import task_type_for

if TYPE_CHECKING:
    from headrace.models.served import ServedModel


def run_stages(project: Project, name: str) -> Recipe:
    """From the source to the evaluation, in this process."""
    recipe = load_recipe(name, project)
    ingest(recipe, project, lambda line: None)
    for stage in STAGES.values():
        stage(recipe, project)
    return recipe


def make_recipe(
    task: str = "classification",
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    name: str = "toy",
    **data: Any,
) -> Recipe:
    """A recipe whose target is `y`; keywords go into its data section."""
    fields = {
        "name": name,
        "task": task,
        "data": {"source": "toy.csv", "target": "y", **data},
        "expect": [],
        "model": model or {"name": "cnn" if task.startswith("image") else "mlp"},
        "train": {"device": "cpu", **(train or {})},
        "serve": {},
    }
    return parse_recipe(yaml.safe_dump(fields), "recipes/toy.yaml")


def fitted(frame: pd.DataFrame, recipe: Recipe) -> Schema:
    return task_type_for(recipe).fit(frame, recipe)


def through_parquet(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The frame as a stage would read it: with the types that Parquet gives back."""
    frame.to_parquet(folder / "frame.parquet", index=False)
    return pd.read_parquet(folder / "frame.parquet")


def make_model(recipe: Recipe, schema: Schema, seed: int = 0) -> ServedModel:
    import torch

    torch.manual_seed(seed)
    return task_type_for(recipe).module(recipe.model, schema).eval()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which every stage of `tiny` and `pictures` ran once, in this process. Tests that change a recipe or its
    artifacts take `another` of them."""
    from tests.projects import make_project

    project = make_project(tmp_path_factory.mktemp("built") / "clone")
    for name in ("tiny", "pictures"):
        run_stages(project, name)
    return project


def another(project: Project, name: str, like: str = "tiny", **sections: dict[str, Any]) -> Recipe:
    """A recipe called `name` with its own copy of the artifacts of `like`; keywords change its sections."""
    fields = yaml.safe_load((project.recipes / f"{like}.yaml").read_text()) | {"name": name}
    for section, changed in sections.items():
        fields[section] = {**(fields.get(section) or {}), **changed}
    (project.recipes / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    shutil.copytree(project.artifacts(like), project.artifacts(name))
    contract = project.artifacts(name) / "export" / "contract.json"
    if contract.exists():  # not in a project that is only prepared
        contract.write_text(json.dumps({**json.loads(contract.read_text()), "model": name}))
    return load_recipe(name, project)
