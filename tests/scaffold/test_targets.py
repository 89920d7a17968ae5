"""`headrace new` with several targets: numbers, columns of true and false, and a column with several labels per row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.data.ingest import ingest
from headrace.data.splits import split
from headrace.data.tables import read_batches
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.scaffold.targets import Target, multilabel_entropy, scaled_error, separator_of, split_names
from headrace.task_types.lookup import task_type_for
from tests.task_types.several_targets import LABELS, labelled, measured, one_column_each, texts_of

ROWS = 150


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / "shop" / "recipes").mkdir(parents=True)
    (tmp_path / "shop" / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("HEADRACE_ROOT", str(tmp_path / "shop"))
    monkeypatch.chdir(tmp_path / "shop")
    return Project(tmp_path / "shop")


def new(project: Project, data: str, *options: str) -> str:
    done = CliRunner().invoke(cli, ["new", "shop", "--data", data, *options])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refused(data: str, *options: str) -> str:
    done = CliRunner().invoke(cli, ["new", "shop", "--data", data, *options])
    assert isinstance(done.exception, HeadraceError), done.output
    return str(done.exception)


def learned(project: Project) -> tuple[Recipe, pd.DataFrame, Any]:
    """The recipe that was written, its rows, and what its task learns of them, in the shape that training takes."""
    recipe = load_recipe("shop", project)
    ingest(recipe, project, lambda line: None)
    rows, task = read_batches(project, recipe), task_type_for(recipe)
    schema = task.learn(split(rows, recipe), recipe)
    return recipe, rows, task.targets(rows, schema, recipe)


@pytest.mark.parametrize("targets", [("--target", "rent", "--target", "rating"), ("--target", "rent, rating")])
def test_several_numbers_are_a_regression(project: Project, targets: tuple[str, ...]) -> None:
    table = measured(ROWS).assign(note="x y z")
    table.loc[3, "rent"], table.loc[[4, 5], "rating"] = None, None
    table.to_csv("flats.csv", index=False)
    said = new(project, "flats.csv", *targets)
    assert "regression of rent, rating" in said and "each of rent, rating holds numbers" in said
    assert "1 rows have no rent" in said and "2 rows have no rating" in said
    recipe, rows, truths = learned(project)
    assert (recipe.task, recipe.data.targets) == ("regression", ["rent", "rating"])
    assert truths.shape == (ROWS - 3, 2) and len(rows) == ROWS - 3
    assert recipe.gate.beat_champion is not None and recipe.gate.beat_champion.metric == "scaled_mae"
    assert float(recipe.gate.require["scaled_mae"].removeprefix("< ")) == pytest.approx(scaled_error(rows, ["rent", "rating"]))
    assert {e.arguments["column"] for e in recipe.expect if e.type.endswith("be_between")} >= {"rent", "rating"}


@pytest.mark.parametrize("as_text", [False, True])
def test_columns_of_true_and_false_are_labels(project: Project, as_text: bool) -> None:
    table = one_column_each(*labelled(ROWS))
    (table.astype(dict.fromkeys(LABELS, int)) if as_text else table).to_csv("tickets.csv", index=False)
    assert "each of late, paid, urgent is true or false" in new(project, "tickets.csv", "--target", ",".join(LABELS))
    recipe, _, truths = learned(project)
    assert (recipe.task, recipe.data.target_columns) == ("multilabel-classification", LABELS)
    assert truths.tolist() == table[sorted(LABELS)].astype(float).to_numpy().tolist()
    target = Target(LABELS, recipe.task, "", has_column_each=True)
    assert float(recipe.gate.require["log_loss"].removeprefix("< ")) == pytest.approx(
        multilabel_entropy(table, target), abs=1e-6
    )
    assert not [e for e in recipe.expect if e.arguments.get("column") in LABELS]


@pytest.mark.parametrize("format", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("separator", [None, "|", ";"])
def test_a_column_with_several_labels_per_row(project: Project, format: str, separator: str | None) -> None:
    frame, labels = labelled(ROWS)
    tags: list[Any] = labels if separator is None else [separator.join(given) for given in labels]
    if separator is None and format == "csv":
        tags = [json.dumps(given) for given in labels]
    table = frame.assign(tags=tags)
    if format == "csv":
        table.to_csv("tickets.csv", index=False)
    else:
        table.to_parquet("tickets.parquet") if format == "parquet" else table.to_json(
            "tickets.jsonl", orient="records", lines=True
        )
    said = new(project, f"tickets.{format}", "--target", "tags")
    assert "multilabel-classification, because tags holds" in said
    recipe, _, truths = learned(project)
    assert (recipe.data.target, recipe.data.label_separator, recipe.data.target_columns) == ("tags", separator, [])
    assert truths.tolist() == [[float(label in given) for label in LABELS] for given in labels]


def test_a_text_with_several_labels(project: Project) -> None:
    _, labels = labelled(ROWS)
    pd.DataFrame({"message": texts_of(labels), "tags": ["|".join(given) for given in labels]}).to_csv("t.csv", index=False)
    new(project, "t.csv", "--target", "tags")
    recipe, _, truths = learned(project)
    assert recipe.task == "multilabel-text-classification" and recipe.data.text is not None and truths.shape == (ROWS, 3)


def test_without_a_target_labels_are_listed_and_a_task_can_be_chosen(project: Project) -> None:
    frame, labels = labelled(ROWS)
    frame.assign(tags=["|".join(given) for given in labels]).to_csv("t.csv", index=False)
    done = CliRunner().invoke(cli, ["new", "shop", "--data", "t.csv"])
    assert "--target tags   multilabel-classification" in done.output
    new(project, "t.csv", "--target", "tags", "--task", "classification")
    assert load_recipe("shop", project).task == "classification"
    (project.recipes / "shop.yaml").unlink()
    (frame.assign(late=frame["days"] > 1)).to_csv("one.csv", index=False)
    new(project, "one.csv", "--target", "late", "--task", "multilabel-classification")
    assert load_recipe("shop", project).data.target_columns == ["late"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "rent,town"), "column 'town' holds text, for example 'b'; leave it out: --target 'rent'"),
        (("--target", "rent,rating", "--task", "classification"), "classification predicts one column, and --target names 2"),
        (("--target", "rent,rating", "--task", "multilabel-classification"), "'rent' does not hold true and false, or 1 and 0"),
        (("--target", "rent,ratng"), "unknown column 'ratng'; did you mean 'rating'?"),
        (("--target", "rent,one"), "column 'one' has 1 distinct value(s)"),
        (("--target", "late,rare"), "fewer than 5 rows have the label: 'rare' (2); add rows, or leave it out: --target 'late'"),
        (("--target", "town", "--task", "multilabel-classification"), "'town' does not hold several labels per row"),
        (("--target", "size,age,town,rent,rating,one,late,rare"), "town"),
    ],
)
def test_what_cannot_be_predicted_together_is_said(project: Project, options: tuple[str, ...], said: str) -> None:
    table = measured(ROWS).assign(one=1, late=[True, False] * (ROWS // 2), rare=[True] * 2 + [False] * (ROWS - 2))
    table.to_csv("flats.csv", index=False)
    error = refused("flats.csv", *options).replace("\n", " ")
    for part in said.split("; "):
        assert part in error, error
    assert not list(project.recipes.glob("*.yaml"))


def test_the_name_of_a_column_may_have_a_comma() -> None:
    assert split_names(["a,b", "c, d", "e"], ["a,b", "c", "d", "e"]) == ["a,b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("values", "sign"),
    [
        (["late|paid", "late", "paid"], "|"),
        (["a;b", "b;c", "c"], ";"),
        (["a, b", "b, c", "c"], None),  # often one label
        (["Rome; a town in Italy by the sea", "Oslo; a town of Norway far up north"], None),
        (["x|1", "y|2", "z|3"], None),  # no label comes twice
        (["a||b", "b|a"], None),
        ([1.0, 2.0], None),
    ],
)
def test_labels_are_recognised_by_a_sign_between_them(values: list[Any], sign: str | None) -> None:
    assert separator_of(pd.Series(values * 10)) == sign


def test_a_constant_is_what_the_gate_asks_to_beat() -> None:
    frame = pd.DataFrame({"a": [True] * 10 + [False] * 10, "tags": ["x|y"] * 5 + [None] * 15, "n": np.arange(20) % 2})
    assert multilabel_entropy(frame, Target(["a"], "multilabel-classification", "", has_column_each=True)) == pytest.approx(
        np.log(2)
    )
    share = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert multilabel_entropy(frame, Target(["tags"], "multilabel-classification", "", "|")) == pytest.approx(share)
    assert scaled_error(frame, ["n"]) == pytest.approx(1.0)
