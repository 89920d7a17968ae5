"""The section `serve.rollout` of a recipe: defaults, durations and mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import RecipeError
from headrace.recipe.recipe import parse_recipe
from headrace.recipe.serve import RolloutConfig
from tests.projects import TINY_TABLE


def recipe(**rollout: Any) -> str:
    return TINY_TABLE.replace("serve: {replicas: 2}", f"serve: {{rollout: {rollout!r}}}")


def test_the_default_is_a_rolling_replacement_without_a_watch() -> None:
    how = parse_recipe(TINY_TABLE, "recipes/tiny.yaml").serve.rollout
    assert (how.strategy, how.steps, how.bake_seconds) == ("rolling", [5, 25, 50], 0.0)


@pytest.mark.parametrize(("bake", "seconds"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("0s", 0)])
def test_durations(bake: str, seconds: float) -> None:
    assert RolloutConfig(bake=bake).bake_seconds == seconds


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"strategy": "canary"}, "bake: a canary needs a time to be watched in each step; set it, for example to 5m"),
        ({"strategy": "blue"}, "serve.rollout.strategy"),
        ({"steps": [25, 5]}, "serve.rollout.steps: expected ascending percentages"),
        ({"steps": []}, "serve.rollout.steps: expected ascending percentages"),
        ({"steps": [0, 5]}, "serve.rollout.steps: expected ascending percentages"),
        ({"steps": [50, 101]}, "serve.rollout.steps: expected ascending percentages"),
        ({"bake": "5"}, "serve.rollout.bake: expected a duration of at most 24h, for example 30s, 5m or 1.5h (got '5')"),
        ({"bake": "25h"}, "serve.rollout.bake: expected a duration of at most 24h"),
        ({"bounds": {"latency": 0.5}}, "serve.rollout.bounds.latency"),
        ({"bounds": {"eror_rate": 0.5}}, "serve.rollout.bounds.eror_rate: unknown field; did you mean 'error_rate'?"),
    ],
)
def test_a_mistake_names_the_field(rollout: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe(**rollout), "recipes/tiny.yaml")
    assert message in str(caught.value)
