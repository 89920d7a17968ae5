"""docs/training.md: every example is valid in a recipe, and every field of the train section and of trees has one."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
import yaml

from headrace.recipe.models import config_of
from headrace.recipe.training import Augmentation, OptimizerName, TrainConfig
from tests.paths import ROOT

BLOCKS: list[dict[str, Any]] = [
    yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), re.DOTALL)
]
EXAMPLES = [block for block in BLOCKS if "train" in block]
MODELS = [block["model"] for block in BLOCKS if "model" in block]


@pytest.mark.parametrize("example", EXAMPLES, ids=[",".join(example["train"]) for example in EXAMPLES])
def test_an_example_is_a_valid_train_section(example: dict[str, Any]) -> None:
    assert set(example) == {"train"}
    assert TrainConfig.model_validate(example["train"]).model_fields_set == set(example["train"])


def test_every_field_has_an_example() -> None:
    assert len(EXAMPLES) + len(MODELS) == len(BLOCKS)
    shown = {name for example in EXAMPLES for name in example["train"]}
    assert shown == set(TrainConfig.model_fields)


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_every_field_of_trees_has_a_valid_example(name: str) -> None:
    examples = [model for model in MODELS if model["name"] == name]
    assert all(config_of(name).model_validate(example).model_fields_set == set(example) for example in examples)
    assert {field for example in examples for field in example} == set(config_of(name).model_fields)


def test_every_optimizer_and_augmentation_is_described() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    augment = next(example["train"]["augment"] for example in EXAMPLES if "augment" in example["train"])
    assert set(augment) == set(Augmentation.model_fields)
    assert all(f"`{name}`" in page for name in get_args(OptimizerName))
