"""The recipe's section `serve.rollout`: what it refuses, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import RecipeError
from headrace.recipe.recipe import parse_recipe
from headrace.recipe.rollout import RolloutConfig
from tests.conftest import TINY_TABLE


def recipe(**rollout: Any) -> str:
    return TINY_TABLE.replace("serve: {replicas: 2}", f"serve: {{rollout: {rollout!r}}}")


def test_the_default_is_a_rolling_replacement_that_nobody_watches() -> None:
    how = parse_recipe(TINY_TABLE, "recipes/tiny.yaml").serve.rollout
    assert (how.strategy, how.steps, how.bake_seconds) == ("rolling", [5, 25, 50], 0.0)


@pytest.mark.parametrize(("bake", "seconds"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("0s", 0)])
def test_durations(bake: str, seconds: float) -> None:
    assert RolloutConfig(bake=bake).bake_seconds == seconds


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        ({"strategy": "canary"}, "bake: a canary is watched for some time at each step; set it, such as 5m"),
        ({"strategy": "blue"}, "serve.rollout.strategy"),
        ({"steps": [25, 5]}, "serve.rollout.steps: percent that rise"),
        ({"steps": []}, "serve.rollout.steps: percent that rise"),
        ({"steps": [0, 5]}, "serve.rollout.steps: percent that rise"),
        ({"steps": [50, 101]}, "serve.rollout.steps: percent that rise"),
        ({"bake": "5"}, "serve.rollout.bake: a duration of at most 24h, such as 30s, 5m or 1.5h (it says '5')"),
        ({"bake": "25h"}, "serve.rollout.bake: a duration of at most 24h"),
        ({"bounds": {"latency": 0.5}}, "serve.rollout.bounds.latency"),
        ({"bounds": {"eror_rate": 0.5}}, "serve.rollout.bounds.eror_rate: no such field; did you mean 'error_rate'?"),
    ],
)
def test_what_cannot_be_is_told_with_its_field(rollout: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe(**rollout), "recipes/tiny.yaml")
    assert said in str(caught.value)
