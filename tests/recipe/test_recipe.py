"""Recipes: every mistake is named with its field and value, and with the near miss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from headrace.errors import RecipeError, SettingsError
from headrace.project import Project, find_project
from headrace.recipe.recipe import load_recipe, parse_recipe, recipe_names
from headrace.settings import INTERNAL, Settings, load_settings
from tests.conftest import ROOT, TINY_TABLE


def changed(**fields: object) -> str:
    """The tiny recipe with dotted `fields` set."""
    recipe = yaml.safe_load(TINY_TABLE)
    for dotted, value in fields.items():
        *path, last = dotted.split("__")
        section = recipe
        for name in path:
            section = section[name]
        section[last] = value
    return yaml.safe_dump(recipe)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("taks", "classification", "taks: no such field; did you mean 'task'?"),
        ("task", "clasification", "did you mean 'classification'?"),
        ("data__targt", "kind", "data.targt: no such field; did you mean 'target'?"),
        ("data__sha256", "abc", "data.sha256"),
        ("data__split__test", 1.5, "data.split.test"),
        ("model__name", "mpl", "'mpl' is no model; did you mean 'mlp'?"),
        ("model__hiden", [3], "model.hiden: no such field; did you mean 'hidden'?"),
        ("model", {"name": "cnn"}, "'cnn' does not fit task 'classification'"),
        ("train__epochs", 0, "train.epochs"),
        ("train__learning_rate", "fast", "it says 'fast'"),
        ("gate__require", {"acuracy": ">= 0.9"}, "did you mean 'accuracy'?"),
        ("gate__require", {"accuracy": "about 0.9"}, "'about 0.9' is no bound"),
        ("gate__beat_champion", {"metric": "mae"}, "'mae' is no metric of 'classification'"),
        ("gate__approval", "persn", "gate.approval"),
        ("serve__replicas", 0, "serve.replicas"),
        ("expect", [{"type": "expect_column_value_to_be_in_set"}], "did you mean 'expect_column_values_to_be_in_set'?"),
    ],
)
def test_a_mistake_names_field_value_and_near_miss(field: str, value: object, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(**{field: value}), "recipes/tiny.yaml")
    assert said in str(caught.value)
    assert "recipes/tiny.yaml" in str(caught.value)
    assert "hint:" in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(train__epochs=0, serve__replicas=0), "recipes/tiny.yaml")
    assert "train.epochs" in caught.value.message
    assert "serve.replicas" in caught.value.message


def test_a_missing_field_is_named() -> None:
    recipe = yaml.safe_load(TINY_TABLE)
    del recipe["data"]["target"]
    with pytest.raises(RecipeError, match=r"data.target: this field is needed"):
        parse_recipe(yaml.safe_dump(recipe), "recipes/tiny.yaml")


def test_broken_yaml_names_line_and_column() -> None:
    with pytest.raises(RecipeError, match=r"recipes/tiny.yaml:\d+:\d+"):
        parse_recipe("name: tiny\ntask: [", "recipes/tiny.yaml")


def test_a_yaml_list_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="mapping"):
        parse_recipe("- name", "recipes/tiny.yaml")


def test_an_unknown_recipe_offers_the_near_miss(project: Project) -> None:
    with pytest.raises(RecipeError, match="did you mean 'tiny'"):
        load_recipe("tinny", project)


@pytest.mark.parametrize("name", ["../tiny", "tiny/../tiny", "", "Tiny", "-x"])
def test_a_name_that_is_no_name_reads_no_file(project: Project, name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(name, project)


def test_the_name_inside_has_to_be_the_files_name(project: Project) -> None:
    (project.recipes / "other.yaml").write_text(TINY_TABLE)
    with pytest.raises(RecipeError, match="differs from the file's name"):
        load_recipe("other", project)


def test_columns_in_short_form_are_expanded() -> None:
    recipe = parse_recipe((ROOT / "recipes" / "digits.yaml").read_text(), "recipes/digits.yaml")
    assert recipe.data.columns is not None
    assert recipe.data.columns[:2] == ["pixel_0", "pixel_1"]
    assert len(recipe.data.columns) == 785


def test_every_recipe_of_the_repository_is_sound() -> None:
    project = Project(ROOT)
    assert {"digits", "flights"} <= set(recipe_names(project))
    for name in recipe_names(project):
        assert load_recipe(name, project).name == name


def test_the_project_is_found_from_a_folder_inside_it(project: Project) -> None:
    assert find_project(project.root / "headrace" / "models") == project


def test_a_misspelt_setting_in_the_environment_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DOR_PORT", "1")
    with pytest.raises(SettingsError, match="did you mean 'HEADRACE_GATEWAY_PORT'"):
        load_settings(project)


@pytest.mark.parametrize("text", ["dor_port = 1", "gateway_port = 0", "gateway_port = ["])
def test_a_mistake_in_the_settings_file_names_it(project: Project, text: str) -> None:
    (project.root / "headrace.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"gateway_port|dor_port|headrace.toml"):
        load_settings(project)


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    script = (
        "import sys, headrace.recipe.recipe, headrace.settings, headrace.runtime.contract, headrace.cli.main\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'great_expectations', 'dvc', 'bentoml', 'pandas', 'matplotlib', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_variable_that_the_code_reads_may_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token for the client, or how replicas log, must not keep `headrace` itself from running."""
    code = [path.read_text(encoding="utf-8") for folder in ("headrace", "bentos") for path in (ROOT / folder).rglob("*.py")]
    named = set(re.findall(r"environ(?:\.get\(|\[)\"HEADRACE_([A-Z_]+)\"", "\n".join(code))) | {"TOKEN", "ADDRESS"}
    assert len(named) > 10
    assert named - INTERNAL - {name.upper() for name in Settings.model_fields} == set()
    monkeypatch.setenv("HEADRACE_TOKEN", "a token")
    monkeypatch.setenv("HEADRACE_ADDRESS", "http://127.0.0.1:8080")
    load_settings(Project(tmp_path))
