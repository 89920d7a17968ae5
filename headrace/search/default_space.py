"""The space of a recipe that names none: the fields that matter most for its model, around the values that it has."""

from __future__ import annotations

import math
from typing import Any

from headrace.recipe.models import BoostedTreesConfig
from headrace.recipe.recipe import Recipe
from headrace.recipe.search import problem_of

SIZES = ("channels", "hidden", "width")
"""Fields with the size of a network, of which a model has one."""
TREE_SIZES = ("num_leaves", "max_depth")
FACTORS = (0.5, 1, 2)
LARGEST_DROPOUT = 0.5


def default_space(recipe: Recipe) -> dict[str, Any]:
    """Returns the space as a recipe writes it: learning rate, batch size and weight decay, and dropout and size of the network;
    of boosted trees the learning rate, their size, and the fractions of rows and features.

    A factor of ten around the recipe's learning rate and weight decay, and half or twice its sizes. The values of the recipe
    are in it.
    """
    return _of_trees(recipe.model) if isinstance(recipe.model, BoostedTreesConfig) else _of_network(recipe)


def _of_trees(model: BoostedTreesConfig) -> dict[str, Any]:
    space: dict[str, Any] = {"model.learning_rate": _decade(model.learning_rate, 1.0)}
    for name in TREE_SIZES:
        if (value := getattr(model, name, None)) is not None:
            space[f"model.{name}"] = [size for size in _scaled(value) if size > 1]
            break
    for name in ("subsample", "colsample_bytree"):
        space[f"model.{name}"] = f"{min(0.5, getattr(model, name)):g}..1"
    return space


def _of_network(recipe: Recipe) -> dict[str, Any]:
    train = recipe.train
    space: dict[str, Any] = {
        "train.learning_rate": _decade(train.learning_rate),
        "train.batch_size": _scaled(train.batch_size),
        "train.weight_decay": _decade(train.weight_decay) if train.weight_decay else [0.0, 0.001, 0.01, 0.1],
    }
    if (dropout := getattr(recipe.model, "dropout", None)) is not None:
        space["model.dropout"] = f"0..{max(dropout, LARGEST_DROPOUT):g}"
    for name in SIZES:
        if value := getattr(recipe.model, name, None):
            fitting = [size for size in _scaled(value) if problem_of(recipe, {f"model.{name}": size}) is None]
            space |= {f"model.{name}": fitting} if len(fitting) > 1 else {}
            break
    return space


def _decade(value: float, limit: float = math.inf) -> str:
    return f"log {value / 10:g}..{min(value * 10, limit):g}"


def _scaled(value: Any) -> list[Any]:
    """Half, the same and twice a size, or of each size in a list."""
    scaled: list[Any] = [
        [max(1, int(one * factor)) for one in value] if isinstance(value, list) else max(1, int(value * factor))
        for factor in FACTORS
    ]
    return [one for i, one in enumerate(scaled) if one not in scaled[:i]]
