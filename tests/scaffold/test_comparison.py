"""Which model `headrace new` proposes for a table, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.scaffold.comparison import FEWEST_ROWS, MOST_ROWS, sample_of
from tests.picture_files import class_folders

ROWS = 400


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "shop" / "recipes").mkdir(parents=True)
    (tmp_path / "shop" / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("HEADRACE_ROOT", str(tmp_path / "shop"))
    monkeypatch.chdir(tmp_path / "shop")
    return Project(tmp_path / "shop")


def steps(rows: int = ROWS) -> pd.DataFrame:
    """A label by boxes of two numbers, which trees find at once; a sum of all columns; gaps."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"n{i}": rng.normal(0, 1, rows).round(4) for i in range(8)})
    frame["box"] = np.where((frame["n0"] > 0.3) ^ (frame["n1"] > -0.2), "in", "out")
    frame["sum"] = sum(frame[f"n{i}"] * (i + 1) for i in range(8)).round(4)  # type: ignore[union-attr]
    frame.loc[::9, "n7"] = np.nan
    return frame


def new(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["new", "x", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize(("target", "metric", "better"), [("box", "log_loss", "lightgbm"), ("sum", "mae", "mlp")])
def test_the_better_model_is_in_the_recipe_with_the_figures_on_terminal_and_in_json(
    target: str, metric: str, better: str, project: Project
) -> None:
    frame = steps().fillna(0.0) if target == "sum" else steps()
    frame.to_csv("t.csv", index=False)
    other = "sum" if target == "box" else "box"
    said = json.loads(new("--data", "t.csv", "--target", target, "--drop", other, "--json"))
    found = said["comparison"]
    assert said["model"] == found["chosen"] == better == load_recipe("x", project).model.name
    assert (found["metric"], found["rows"], found["folds"]) == (metric, ROWS, 3)
    assert found["models"][better] == min(found["models"].values()) and set(found["models"]) == {"mlp", "lightgbm"}
    (project.recipes / "x.yaml").unlink()
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found["models"].items())
    shown = new("--data", "t.csv", "--target", target, "--drop", other)
    line = f"{better}, as 3-fold cross-validation on 400 rows says ({metric}, lower is better): {figures}; --model NAME chooses"
    assert line in shown.splitlines()


@pytest.mark.parametrize("model", ["mlp", "lightgbm", "xgboost"])
def test_a_model_that_is_named_is_written_without_a_comparison(
    model: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("headrace.scaffold.comparison.compare")
    steps().to_csv("t.csv", index=False)
    assert "cross-validation" not in new("--data", "t.csv", "--target", "box", "--model", model)
    assert load_recipe("x", project).model.name == model


def test_tables_without_a_choice_are_not_compared(project: Project) -> None:
    steps(FEWEST_ROWS - 1).to_csv("few.csv", index=False)
    said = json.loads(new("--data", "few.csv", "--target", "box", "--json"))
    assert (said["model"], said["comparison"]) == ("mlp", None)
    (project.recipes / "x.yaml").unlink()
    steps().to_csv("t.csv", index=False)
    said = json.loads(new("--data", "t.csv", "--target", "n0", "--target", "n1", "--json"))
    assert (said["model"], said["comparison"]) == ("mlp", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "box", "--model", "lightgmb"], "unknown model 'lightgmb'; did you mean 'lightgbm'?"),
        (["--target", "n0", "--target", "n1", "--model", "xgboost"], "xgboost predicts one column, got 2"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(arguments: list[str], message: str, project: Project) -> None:
    steps().to_csv("t.csv", index=False)
    done: Any = CliRunner().invoke(cli, ["new", "x", "--data", "t.csv", *arguments])
    assert isinstance(done.exception, HeadraceError) and message in str(done.exception), done.output
    assert not (project.recipes / "x.yaml").exists()


def test_a_model_of_tables_is_refused_for_pictures(project: Project) -> None:
    class_folders(project.root / "set", each=12)
    done: Any = CliRunner().invoke(cli, ["new", "x", "--data", "set", "--model", "lightgbm"])
    assert "lightgbm is chosen for tables of numbers and categories" in str(done.exception), done.output
    assert not (project.recipes / "x.yaml").exists()


def test_a_large_table_is_compared_on_some_of_its_rows() -> None:
    rows = sample_of(pd.DataFrame({"a": np.arange(5 * MOST_ROWS)}))["a"]
    assert len(rows) == MOST_ROWS and rows.is_monotonic_increasing and rows.max() > 4 * MOST_ROWS
