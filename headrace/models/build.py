"""Builds the network that a recipe's `model` section names."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from headrace.errors import RecipeError
from headrace.models.ensemble import Ensemble
from headrace.models.schema import Shape
from headrace.plugins import is_dotted, load_class
from headrace.recipe.models import EnsembleConfig, ModelConfig

Network = TypeVar("Network", bound=nn.Module)


def build(config: ModelConfig, shape: Shape) -> nn.Module:
    """Returns the torch module that `config` names, with inputs and outputs of `shape`."""
    network = load_class(config.name if is_dotted(config.name) else config.builds)
    if isinstance(config, EnsembleConfig) and config.members > 1:
        return Ensemble(lambda: network(config, shape), config.members, shape.independent)
    built: nn.Module = network(config, shape)
    return built


def build_as(config: ModelConfig, shape: Shape, base: type[Network]) -> Network:
    """Returns the same as `build`, for a task type whose networks have to be subclasses of `base`.

    Raises:
        RecipeError: the network is not a subclass of `base`.
    """
    network = build(config, shape)
    if not isinstance(network, base):
        raise RecipeError(
            f"{config.name!r} does not build a {base.__name__}, which this task needs",
            where="model.name",
            hint=f"name a model of this task, or a subclass of {base.__module__}:{base.__qualname__}",
        )
    return network
