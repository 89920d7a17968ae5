"""A tiny project in a temporary folder, and recipes for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    return Project(root)


@pytest.fixture
def make_recipe(project: Project) -> MakeRecipe:
    """Writes `recipes/<name>.yaml` and loads it; further keywords go into its data section."""

    def make(
        name: str = "toy",
        task: str = "regression",
        expect: list[dict[str, Any]] | None = None,
        train: dict[str, Any] | None = None,
        **data: Any,
    ) -> Recipe:
        fields = {
            "name": name,
            "task": task,
            "data": {"source": "toy.csv", "target": "y", **data},
            "expect": expect or [],
            "model": {"name": "cnn" if task.startswith("image") else "mlp"},
            "train": train or {},
            "serve": {},
        }
        (project.recipes / f"{name}.yaml").write_text(yaml.safe_dump(fields))
        return load_recipe(name, project)

    return make


@pytest.fixture
def toy_csv(project: Project) -> Path:
    """Months 1 to 4, ten rows each."""
    path = project.root / "toy.csv"
    rows = [f"{month},{day},{'ab'[day % 2]},{month * 10 + day}" for month in range(1, 5) for day in range(10)]
    path.write_text("month,day,kind,y\n" + "\n".join(rows) + "\n")
    return path
