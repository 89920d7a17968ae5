"""The README's table shows the results of the current recipes, and every recipe meets its gate."""

from __future__ import annotations

import re

import pytest

from benchmarks.recipes import BEGIN, END, digest, main, readme_table, table
from headrace.evaluation.gate import OPERATORS
from headrace.files import read_json
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from tests.paths import ROOT

RESULTS = read_json(ROOT / "docs" / "benchmarks" / "recipes.json") or {}
NAMES = sorted(RESULTS)
"""Recipes that were trained in full; the README states that the others were not."""


def test_the_readme_shows_the_stored_results() -> None:
    assert readme_table(ROOT / "README.md") == table(RESULTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_result_belongs_to_the_current_recipe(name: str) -> None:
    assert RESULTS[name]["recipe_sha256"] == digest(load_recipe(name, Project(ROOT))), f"stale: make recipes NAMES={name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_meets_its_gate(name: str) -> None:
    required = load_recipe(name, Project(ROOT)).gate.require
    assert required, "a recipe of this repository has `gate.require`"
    for metric, bound in required.items():
        sign, limit = re.fullmatch(r"\s*(>=|<=|>|<)\s*(\S+)\s*", bound).groups()  # type: ignore[union-attr]
        assert OPERATORS[sign](RESULTS[name]["metrics"][metric], float(limit)), (metric, RESULTS[name]["metrics"])


@pytest.mark.exhaustive
def test_the_command_trains_and_writes_the_table(project: Project) -> None:
    (project.root / "README.md").write_text(f"# A project\n\n{BEGIN}\n{END}\n\nThe end.\n")
    recipe = project.recipes / "tiny.yaml"
    if "require" not in recipe.read_text():
        recipe.write_text(recipe.read_text() + 'gate: {require: {accuracy: ">= 0.5"}}\n')
    assert main(["tiny"]) == 0
    written = (project.root / "README.md").read_text()
    assert "| [`tiny`](recipes/tiny.yaml) | classification | mlp, " in written and written.endswith("The end.\n")
    assert list(read_json(project.root / "docs" / "benchmarks" / "recipes.json")) == ["tiny"]
