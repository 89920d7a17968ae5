"""Verses, and recipes of models that write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from headrace.recipe.recipe import Recipe
from tests.bento_projects import make_recipe


def rhymes(rows: int, seed: int = 0) -> pd.DataFrame:
    """Verses of the same few words in another order."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(["the", "mill", "turns", "water", "runs"], 6)) for _ in range(rows)]
    return pd.DataFrame({"title": [f"No. {i}" for i in range(rows)], "text": [f"{line},\nand so on." for line in lines]})


def recipe_of(target: str = "text", model: str = "gpt", **text: Any) -> Recipe:
    fields = {"column": "text", "tokens": "characters", "length": 4, "lowercase": False, **text}
    small = {"width": 8, "heads": 2, "layers": 1} if model == "gpt" else {"embedding": 5, "hidden": 6}
    return make_recipe("text-generation", model={"name": model, **small}, target=target, text=fields)
