"""The recipe's section `compress`: its fields, and what it cannot be used for."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import RecipeError
from headrace.recipe.compress import main_metric
from headrace.recipe.recipe import Recipe, parse_recipe
from tests.projects import TINY_TABLE

GENERATION = """
name: songs
task: text-generation
data: {source: songs.csv, target: text, text: {column: text, tokens: characters}}
expect: []
model: {name: gpt}
train: {}
compress: {method: int8-dynamic}
serve: {}
"""


def tiny(section: str, text: str = TINY_TABLE) -> Recipe:
    return parse_recipe(f"{text}\ncompress: {section}\n", "recipes/tiny.yaml")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{method: int8-dinamic}", "unknown method 'int8-dinamic'; did you mean 'int8-dynamic'?"),
        ("{method: int4}", "weights of 4 bits are a format of language models (GGUF)"),
        ("{}", "compress.method: required field is missing"),
        ("{method: float16, max_loss: 0}", "compress.max_loss: Input should be greater than 0"),
        ("{method: float16, share: 0.5}", "share: applies to prune only, not to 'float16'"),
        ("{method: prune, share: 1.0}", "compress.share: Input should be less than 1"),
        (
            "{method: int8-static, calibration_rows: 1}",
            "calibration_rows: Input should be greater than or equal to 16",
        ),
        ("{method: float16, metric: acuracy}", "compress.metric: unknown metric; did you mean 'accuracy'?"),
        ("{method: float16, metric: calibration_error}", "calibration_error cannot be compared row by row"),
        ("{method: float16, maxloss: 0.1}", "compress.maxloss: unknown field; did you mean 'max_loss'?"),
        ("{method: distil, student: {hidden: [4]}}", "`name` is missing"),
        ("{method: prune}\nmodel: {name: lightgbm}\ntrain: {}", "prune takes networks, and lightgbm is none"),
        ("{method: distil, student: {name: cnn}}", "compress.student: model: 'cnn' cannot be used for 'classification'"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(section: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tiny(section)
    assert message in caught.value.message


def test_a_model_of_several_graphs_cannot_be_compressed() -> None:
    with pytest.raises(RecipeError, match="several graphs that run in turns, which is not supported; remove the section"):
        parse_recipe(GENERATION, "recipes/songs.yaml")


@pytest.mark.parametrize(
    ("gate", "section", "metric"),
    [
        ({}, {}, "accuracy"),
        ({"require": {"log_loss": "< 1"}}, {}, "log_loss"),
        ({"require": {"log_loss": "< 1"}, "beat_champion": {"metric": "auc"}}, {}, "auc"),
        ({"require": {"calibration_error": "< 1"}}, {}, "accuracy"),
        ({"beat_champion": {"metric": "auc"}}, {"metric": "macro_f1"}, "macro_f1"),
    ],
)
def test_the_metric_is_that_of_the_section_else_of_the_gate(gate: dict[str, Any], section: dict[str, Any], metric: str) -> None:
    recipe = tiny(f"{{method: float16{''.join(f', {k}: {v}' for k, v in section.items())}}}")
    changed = recipe.gate.model_validate(gate)
    assert main_metric(recipe.compress, changed, recipe.task_type) == metric


def test_the_settings_in_a_few_words_are_those_of_the_method() -> None:
    found = tiny("{method: prune, max_loss: 0.02, share: 0.9}").compress
    assert found is not None and found.described() == "prune (max_loss 0.02, share 0.9)"
    found = tiny("{method: distil, student: {name: mlp, hidden: [4]}, epochs: 2}").compress
    assert found is not None
    assert found.described() == "distil (max_loss 0.005, student mlp, temperature 4.0, soft 0.9, epochs 2)"
