"""The student of a distillation whose recipe names none: the recipe's own network with half the width."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from headrace.errors import RecipeError
from headrace.recipe.models import ModelConfig

WIDTHS = ("channels", "hidden", "width", "embedding")
"""Fields of models that are numbers of features."""


def half_as_wide(model: ModelConfig) -> ModelConfig:
    """Returns the model with half the features in each layer, and one network where it is an ensemble.

    Raises:
        RecipeError: the model has no such fields, or not with these values.
    """
    changes: dict[str, Any] = {}
    for name in WIDTHS:
        value = getattr(model, name, None)
        if isinstance(value, list):
            changes[name] = [max(1, one // 2) for one in value]
        elif isinstance(value, int):
            changes[name] = max(1, value // 2)
    if not changes:
        raise _without(model, "has no fields for its width")
    if getattr(model, "members", 1) > 1:
        changes["members"] = 1
    try:
        return type(model).model_validate({**model.model_dump(), **changes})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise _without(model, f"cannot have half of it: {message}") from None


def _without(model: ModelConfig, why: str) -> RecipeError:
    return RecipeError(
        f"the student has to be named: {model.name!r} {why}",
        where="compress.student",
        hint="write the fields of a smaller model, for example student: {name: mlp, hidden: [32]}",
    )
