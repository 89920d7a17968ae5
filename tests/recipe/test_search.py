"""The section `search` of a recipe: its values, and what is wrong with them, which is said when the recipe is read."""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml

from headrace.errors import RecipeError
from headrace.recipe.recipe import Recipe, parse_recipe
from headrace.recipe.search import Choice, Range, draw, objective_of, problem_of, space_of, with_values
from tests.projects import TINY_TABLE


def recipe(space: dict[str, Any] | None = None, **search: Any) -> Recipe:
    fields = yaml.safe_load(TINY_TABLE) | {"search": {"space": space or {}, **search}}
    return parse_recipe(yaml.safe_dump(fields), "recipes/tiny.yaml")


def space(**entries: Any) -> Any:
    found = recipe({name.replace("__", "."): written for name, written in entries.items()})
    assert found.search is not None
    return space_of(found.search, found)


@pytest.mark.parametrize(
    ("name", "written", "entry", "shown"),
    [
        ("train.learning_rate", "log 1e-4..0.1", Range(1e-4, 0.1, is_log=True), "log 0.0001..0.1"),
        ("train.learning_rate", ["1e-3", 0.01], Choice((0.001, 0.01)), "0.001, 0.01"),
        ("train.batch_size", "16..128 step 16", Range(16, 128, step=16, is_int=True), "16..128 step 16"),
        ("train.batch_size", "log 8..256", Range(8, 256, is_log=True, is_int=True), "log 8..256"),
        ("train.batch_size", [32, 64], Choice((32, 64)), "32, 64"),
        ("train.max_grad_norm", [None, 1], Choice((None, 1.0)), "null, 1.0"),
        ("train.optimizer", ["adam", "sgd"], Choice(("adam", "sgd")), "adam, sgd"),
        ("train.early_stopping.patience", "1..5", Range(1, 5, is_int=True), "1..5"),
        ("model.dropout", " 0 .. .5 ", Range(0.0, 0.5), "0..0.5"),
        ("model.hidden", [[64], [128, 64]], Choice(([64], [128, 64])), "[64], [128, 64]"),
    ],
)
def test_values_are_a_list_or_a_range(name: str, written: Any, entry: Any, shown: str) -> None:
    found = space(**{name.replace(".", "__"): written})[name]
    assert found == entry and str(found) == shown


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("train.lerning_rate", "0..1", "search.space.train.lerning_rate: unknown field; did you mean 'learning_rate'?"),
        ("train.early_stopping.patiense", "1..3", "unknown field; did you mean 'patience'?"),
        ("batch_size", [32, 64], "unknown field of `model` or `train`; did you mean 'train.batch_size'?"),
        ("model.channels", [[8], [16]], "search.space.model.channels: unknown field; "),
        ("train.learning_rate", "0..1", "search.space.train.learning_rate: Input should be greater than 0 (got 0.0)"),
        ("model.dropout", "0..1", "Input should be less than 1 (got 1.0)"),
        ("train.optimizer", ["adam", "adamx"], "Input should be 'adamw', 'adam', 'sgd', 'rmsprop' or 'muon' (got 'adamx')"),
        ("train.optimizer", "0..1", "this field takes no single number; list its values"),
        ("train.batch_size", "0.5..3", "this field takes whole numbers"),
        ("train.batch_size", [32, 32.5], "Input should be a valid integer"),
        ("train.batch_size", [32], "at least two values are needed"),
        ("train.batch_size", [32, 32], "a value is there twice"),
        ("train.batch_size", 32, "expected a list of values, or a range such as 0..0.5"),
        ("train.batch_size", "8..x", "expected a list of values, or a range such as 0..0.5"),
        ("train.batch_size", "64..8", "the first number has to be below the second"),
        ("train.batch_size", "8..64 step 100", "the step has to be above 0 and within the range"),
        ("train.weight_decay", "log 0..1", "log needs numbers above 0"),
        ("train.weight_decay", "log 1..9 step 2", "log and step exclude each other"),
        ("train.seed", "1..9", "this field cannot be searched: the best of several seeds is luck"),
        ("train.window", [3, 4], "this field cannot be searched: it chooses the rows"),
        ("model.name", ["mlp", "cnn"], "search one model at a time"),
        ("model.hidden.size", "1..3", "model.hidden has no fields; name it alone"),
        ("train.momentum", "0..0.9", "fits no value of the other fields: train.momentum: adamw has no such setting"),
    ],
)
def test_a_wrong_entry_is_an_error_before_any_trial(name: str, written: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe({name: written})
    assert message in str(caught.value) and "headrace check tiny" in str(caught.value)


def test_a_value_may_need_another_value_of_another_field() -> None:
    assert space(train__momentum="0..0.9", train__optimizer=["sgd", "rmsprop"])
    found = recipe()
    assert "adamw has no such setting" in (problem_of(found, {"train.momentum": 0.5}) or "")
    assert problem_of(found, {"train.momentum": 0.5, "train.optimizer": "sgd"}) is None


def test_values_are_drawn_within_their_limits() -> None:
    rng, found = random.Random(1), space(train__batch_size="8..64 step 8", train__learning_rate="log 0.001..0.1")
    for _ in range(50):
        drawn = draw(found, rng)
        assert drawn["train.batch_size"] in range(8, 65, 8) and 0.001 <= drawn["train.learning_rate"] <= 0.1


def test_a_recipe_takes_other_values_and_keeps_its_rules() -> None:
    found = with_values(recipe({"train.batch_size": [16, 32]}), {"train.batch_size": 16, "train.early_stopping.patience": 4})
    assert found.train.batch_size == 16 and found.search is None
    assert found.train.early_stopping is not None and found.train.early_stopping.patience == 4


def test_the_metric_is_that_of_the_gate_or_the_loss() -> None:
    assert objective_of(recipe()) == ("accuracy", "higher")
    assert objective_of(recipe(metric="log_loss")) == ("log_loss", "lower")
    assert objective_of(recipe(metric="loss")) == ("loss", "lower")
    with pytest.raises(RecipeError, match=r"search\.metric: 'acuracy' is not measured .* did you mean 'accuracy'"):
        recipe(metric="acuracy")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("trials", 0, "greater than or equal to 1"), ("sampler", "best", "'tpe'"), ("timeout", "5", "at least a minute")],
)
def test_a_wrong_setting_is_an_error(field: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**{field: value})
    assert f"search.{field}" in str(caught.value) and message in str(caught.value)
