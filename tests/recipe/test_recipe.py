"""Recipes and settings: a mistake is reported with its field, value and near miss, an old name with the new one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace import renamed
from headrace.errors import RecipeError, SettingsError
from headrace.project import Project, find_project
from headrace.recipe.recipe import load_recipe, parse_recipe, recipe_names
from headrace.settings import INTERNAL, Settings, load_settings
from tests.paths import ROOT
from tests.projects import TINY_TABLE


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
    ("field", "value", "message"),
    [
        ("taks", "classification", "taks: unknown field; did you mean 'task'?"),
        ("task", "clasification", "did you mean 'classification'?"),
        ("data__targt", "kind", "data.targt: unknown field; did you mean 'target'?"),
        ("data__sha256", "abc", "data.sha256"),
        ("data__split__test", 1.5, "data.split.test"),
        ("model__name", "mpl", "unknown model 'mpl'; did you mean 'mlp'?"),
        ("model__hiden", [3], "model.hiden: unknown field; did you mean 'hidden'?"),
        ("model", {"name": "cnn"}, "'cnn' cannot be used for 'classification'"),
        ("train__epochs", 0, "train.epochs"),
        ("train__learning_rate", "fast", "(got 'fast')"),
        ("train__window", 0, "train.window: expected a number of values, at least 1, or a length of time"),
        ("train__window", "3 fortnights", "train.window: expected a number of values"),
        ("train__window", True, "train.window: expected a number of values"),
        ("train__window", "3 months", "train.window: the recipe names no column of time"),
        ("train__start", "champoin", "train.start"),
        ("gate__require", {"acuracy": ">= 0.9"}, "did you mean 'accuracy'?"),
        ("gate__require", {"accuracy": "about 0.9"}, "invalid bound 'about 0.9'"),
        ("gate__beat_champion", {"metric": "mae"}, "unknown metric 'mae' for 'classification'"),
        ("gate__approval", "persn", "gate.approval"),
        ("serve__replicas", 0, "serve.replicas"),
        ("monitor", {"personl": []}, "monitor.personl: unknown field; did you mean 'personal'?"),
        ("monitor", {"personal": ["kind"]}, "monitor.personal: 'kind' is what the model predicts"),
        ("monitor", {"personal": ["height", "height"]}, "listed twice"),
        ("expect", [{"type": "expect_column_value_to_be_in_set"}], "did you mean 'expect_column_values_to_be_in_set'?"),
    ],
)
def test_a_mistake_names_field_value_and_near_miss(field: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(**{field: value}), "recipes/tiny.yaml")
    assert message in str(caught.value)
    assert "recipes/tiny.yaml" in str(caught.value)
    assert "hint:" in str(caught.value)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(train__epochs=0, serve__replicas=0), "recipes/tiny.yaml")
    assert "train.epochs" in caught.value.message
    assert "serve.replicas" in caught.value.message


def test_a_missing_field_is_reported() -> None:
    recipe = yaml.safe_load(TINY_TABLE)
    del recipe["data"]["target"]
    with pytest.raises(RecipeError, match=r"data.target: required field is missing"):
        parse_recipe(yaml.safe_dump(recipe), "recipes/tiny.yaml")


def test_broken_yaml_names_line_and_column() -> None:
    with pytest.raises(RecipeError, match=r"recipes/tiny.yaml:\d+:\d+"):
        parse_recipe("name: tiny\ntask: [", "recipes/tiny.yaml")


def test_a_yaml_list_is_refused() -> None:
    with pytest.raises(RecipeError, match="mapping"):
        parse_recipe("- name", "recipes/tiny.yaml")


def test_an_unknown_recipe_offers_the_near_miss(project: Project) -> None:
    with pytest.raises(RecipeError, match="did you mean 'tiny'"):
        load_recipe("tinny", project)


@pytest.mark.parametrize("name", ["../tiny", "tiny/../tiny", "", "Tiny", "-x"])
def test_an_invalid_name_reads_no_file(project: Project, name: str) -> None:
    with pytest.raises(RecipeError, match="unknown recipe"):
        load_recipe(name, project)


def test_the_name_field_has_to_match_the_file_name(project: Project) -> None:
    (project.recipes / "other.yaml").write_text(TINY_TABLE)
    with pytest.raises(RecipeError, match="differs from the name of the file"):
        load_recipe("other", project)


def test_columns_in_short_form_are_expanded() -> None:
    recipe = parse_recipe((ROOT / "recipes" / "digits.yaml").read_text(), "recipes/digits.yaml")
    assert recipe.data.columns is not None
    assert recipe.data.columns[:2] == ["pixel_0", "pixel_1"]
    assert len(recipe.data.columns) == 785


def test_every_recipe_of_the_repository_is_valid() -> None:
    project = Project(ROOT)
    assert {"digits", "flights"} <= set(recipe_names(project))
    for name in recipe_names(project):
        assert load_recipe(name, project).name == name


def test_the_project_is_found_from_a_folder_inside_it(project: Project) -> None:
    assert find_project(project.root / "headrace" / "models") == project


def test_a_misspelt_variable_is_reported_with_the_near_miss(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_GATEWY_PORT", "1")
    with pytest.raises(SettingsError, match="did you mean 'HEADRACE_GATEWAY_PORT'"):
        load_settings(project.root)


@pytest.mark.parametrize("text", ["gatewy_port = 1", "gateway_port = 0", "gateway_port = ["])
def test_a_mistake_in_the_settings_file_is_reported(project: Project, text: str) -> None:
    (project.root / "headrace.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"gateway_port|gatewy_port|headrace.toml"):
        load_settings(project.root)


def recipe_with(path: str, value: object, base: str = TINY_TABLE) -> str:
    """A recipe with the field at a dotted path set; sections on the way are added."""
    recipe = yaml.safe_load(base)
    section = recipe
    *outer, last = path.split(".")
    for name in outer:
        section = section.setdefault(name, {})
    section[last] = value
    return yaml.safe_dump(recipe)


VALUES: dict[str, object] = {
    "data.incremental": {"column": "length", "first": 2},
    "data.split.predefined": {"column": "colour", "test": "red"},
    "data.split.group.match": "words",
    "train.gradient_accumulation_steps": 2,
    "train.max_grad_norm": 1.0,
    "train.warmup": 0.1,
    "serve.rollout.bounds.min_requests": 10,
}
GROUPED = recipe_with("data.split.group", {"column": "colour"})


@pytest.mark.parametrize(("old", "new"), renamed.RECIPE_FIELDS.items())
def test_a_renamed_field_is_an_error_that_gives_the_new_name(old: str, new: str) -> None:
    base = GROUPED if "group" in old else TINY_TABLE
    text = recipe_with(old, VALUES[new], base)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "recipes/tiny.yaml")
    assert caught.value.message == f"{old}: renamed to {new.split('.')[-1]!r}"
    assert parse_recipe(text, "recipes/tiny.yaml", translate_renamed=True) == parse_recipe(
        recipe_with(new, VALUES[new], base), "recipes/tiny.yaml"
    )


@pytest.mark.parametrize(("field", "old", "new"), [(*key, new) for key, new in renamed.RECIPE_VALUES.items()])
def test_a_renamed_value_is_an_error_that_gives_the_new_value(field: str, old: str, new: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe_with(field, old), "recipes/tiny.yaml")
    assert caught.value.message == f"{field}: value {old!r} was renamed to {new!r}"
    translated = parse_recipe(recipe_with(field, old), "recipes/tiny.yaml", translate_renamed=True)
    assert translated == parse_recipe(recipe_with(field, new), "recipes/tiny.yaml")


@pytest.mark.parametrize(("old", "new"), renamed.SETTINGS.items())
def test_a_renamed_setting_is_an_error_that_gives_the_new_name(
    project: Project, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    (project.root / "headrace.toml").write_text(f"{old} = 8081\n")
    with pytest.raises(SettingsError, match=f"{old}: renamed to '{new}'"):
        load_settings(project.root)
    (project.root / "headrace.toml").unlink()
    monkeypatch.setenv(f"HEADRACE_{old.upper()}", "8081")
    with pytest.raises(SettingsError, match=f"HEADRACE_{old.upper()} was renamed to HEADRACE_{new.upper()}"):
        load_settings(project.root)


@pytest.mark.parametrize(("field", "old", "new"), [(*key, new) for key, new in renamed.SETTING_VALUES.items()])
def test_a_renamed_value_of_a_setting_is_an_error_that_gives_the_new_value(
    project: Project, monkeypatch: pytest.MonkeyPatch, field: str, old: str, new: str
) -> None:
    (project.root / "headrace.toml").write_text(f'{field} = "{old}"\n')
    with pytest.raises(SettingsError, match=f"{field}: value '{old}' was renamed to '{new}'"):
        load_settings(project.root)
    (project.root / "headrace.toml").unlink()
    monkeypatch.setenv(f"HEADRACE_{field.upper()}", old)
    with pytest.raises(SettingsError, match=f"{field}: value '{old}' was renamed to '{new}'"):
        load_settings(project.root)


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
    load_settings(tmp_path)


@pytest.mark.parametrize(("name", "model"), [("interval", {"interval": 0.9}), ("quantiles", {"quantiles": [0.1, 0.5, 0.9]})])
def test_a_target_called_as_a_part_of_its_own_prediction_is_refused(name: str, model: dict[str, Any]) -> None:
    fields = {
        "name": "x",
        "task": "regression",
        "data": {"source": "x.csv", "target": name},
        "expect": [],
        "model": {"name": "mlp", **model},
        "train": {},
        "serve": {},
    }
    with pytest.raises(RecipeError, match=rf"data\.target: predictions hold their {name} .*rename the column \(data\.rename\)"):
        parse_recipe(yaml.safe_dump(fields), "recipes/x.yaml")
    parse_recipe(yaml.safe_dump({**fields, "model": {"name": "mlp"}}), "recipes/x.yaml")
