from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.data.ingest import ingest
from headrace.errors import RecipeError, UsageError
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.scaffold.write import write_recipe

ROWS = 200


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    (tmp_path / "project" / "dvc.yaml").write_text("stages: {}\n")
    return Project(tmp_path / "project")


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(ROWS) * 3 + 1,
            "price": rng.normal(100, 10, ROWS),
            "rooms": rng.integers(1, 6, ROWS),
            "city": rng.choice(["Oslo", "Rome"], ROWS),
            "email": [f"u{i}@example.org" for i in range(ROWS)],
            "unit": 1,
            "churned": rng.choice(["yes", "no"], ROWS),
        }
    )


def saved(project: Project, table: pd.DataFrame, name: str = "table.csv") -> Path:
    path = project.root / name
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
@pytest.mark.parametrize(
    ("target", "task"), [("price", "regression"), ("churned", "classification"), ("rooms", "classification")]
)
def test_a_written_recipe_loads_and_its_data_passes_validation(
    project: Project, table: pd.DataFrame, name: str, target: str, task: str
) -> None:
    path = write_recipe("homes", saved(project, table, name), target, project).path
    recipe = load_recipe("homes", project)
    assert path == project.recipes / "homes.yaml" and recipe.task == task and recipe.data.source == name
    assert ingest(recipe, project, lambda line: None).rows == ROWS


def test_id_columns_are_excluded_with_a_comment(project: Project, table: pd.DataFrame) -> None:
    path = write_recipe("homes", saved(project, table), "price", project).path
    assert load_recipe("homes", project).data.columns == ["price", "rooms", "city", "churned"]
    for column in ("id", "email", "unit"):
        assert f"# excluded: {column} " in path.read_text()


def test_the_gate_requires_more_than_a_constant_reaches(project: Project, table: pd.DataFrame) -> None:
    write_recipe("homes", saved(project, table), "churned", project)
    bound = load_recipe("homes", project).gate.require["accuracy"]
    assert float(bound.removeprefix(">= ")) > table["churned"].value_counts(normalize=True).max()
    write_recipe("prices", saved(project, table), "price", project)
    error = (table["price"] - table["price"].median()).abs().mean()
    assert float(load_recipe("prices", project).gate.require["mae"].removeprefix("< ")) == pytest.approx(error, abs=1e-6)


def test_rows_without_a_target_are_dropped(project: Project, table: pd.DataFrame) -> None:
    table.loc[3, "price"] = np.nan
    write_recipe("homes", saved(project, table), "price", project)
    recipe = load_recipe("homes", project)
    assert recipe.data.drop_missing == ["price"] and ingest(recipe, project, lambda line: None).rows == ROWS - 1


NAMES = [
    "yes",
    "null",
    "no, [x]",
    "weird\nname",
    "q\"uote's",
    "a: b",
    "#c",
    "1e5",
    "2020-01-01",
    "~",
    " lead",
    "{x}",
    "é\u2028",
    "*a",
    "?",
]


def test_any_column_name_can_be_written_as_yaml(project: Project) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.normal(size=50) for name in [*NAMES, "y"]})
    write_recipe("odd", saved(project, table), "y", project)
    recipe = load_recipe("odd", project)
    assert recipe.data.columns == [*NAMES, "y"]
    assert ingest(recipe, project, lambda line: None).rows == 50


def test_a_name_that_would_mean_a_range_is_excluded(project: Project, table: pd.DataFrame) -> None:
    path = write_recipe("homes", saved(project, table.rename(columns={"rooms": "rooms[3]"})), "price", project).path
    assert "excluded: rooms[3]" in path.read_text() and "rooms[3]" not in (load_recipe("homes", project).data.columns or [])


def test_an_existing_recipe_is_never_overwritten(project: Project, table: pd.DataFrame) -> None:
    path = write_recipe("homes", saved(project, table), "price", project).path
    path.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        write_recipe("homes", saved(project, table), "price", project)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("My Homes", "price", "invalid recipe name"),
        ("homes", "prise", "did you mean 'price'"),
        ("homes", "unit", "nothing to predict"),
        ("homes", "email", "too many for classes"),
    ],
)
def test_an_impossible_recipe_is_refused_and_leaves_no_file(
    project: Project, table: pd.DataFrame, name: str, target: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        write_recipe(name, saved(project, table), target, project)
    assert caught.value.hint and list(project.recipes.iterdir()) == []
    if name == "My Homes":
        assert "my-homes" in caught.value.hint


def test_an_empty_target_is_refused(project: Project, table: pd.DataFrame) -> None:
    with pytest.raises(RecipeError, match="nothing to predict"):
        write_recipe("homes", saved(project, table.assign(price=np.nan)), "price", project)


def test_a_source_outside_of_the_project_is_pointed_out(
    project: Project, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_ROOT", str(project.root))
    outside = project.root.parent / "table.csv"
    table.to_csv(outside, index=False)
    command = ["new", "--target", "churned", "--data"]
    said = CliRunner().invoke(cli, [*command, str(outside), "far"])
    assert f"{outside} is outside of the project, so another clone will not find it" in said.output
    assert "outside" not in CliRunner().invoke(cli, [*command, str(saved(project, table)), "near"]).output
