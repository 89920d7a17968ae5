"""The models a recipe can name. One entry each: its settings, and the dotted path of the module it builds.

Adding a family is one file beside this one and one entry in `MODELS`, or a class of one's own that the recipe names by its
path `module:Class`; its settings are the class's own `Config`. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import near_miss
from headrace.extensions import is_dotted, load_class

if TYPE_CHECKING:
    from torch import nn


class ModelConfig(BaseModel):
    """Settings every entry shares; `builds` is `module:class`, called as `class(config, shape)`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    builds: ClassVar[str]
    name: str


class CNNConfig(ModelConfig):
    """Convolution, ReLU and pooling, once for each entry of `channels`, then one linear layer."""

    builds = "headrace.models.cnn:CNN"
    name: Literal["cnn"] = "cnn"
    channels: list[Annotated[int, Field(ge=1)]] = Field(default=[32, 64], min_length=1)
    """Output channels of each block; every block halves height and width."""
    dropout: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Probability of dropping a feature before the linear layer."""


class MLPConfig(ModelConfig):
    """A dense network; each categorical column gets an embedding."""

    builds = "headrace.models.mlp:MLP"
    name: Literal["mlp"] = "mlp"
    hidden: list[Annotated[int, Field(ge=1)]] = [128, 64]
    """Width of each hidden layer."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a hidden feature."""
    embedding: int = Field(default=8, ge=1)
    """Longest embedding of a categorical column; short vocabularies get fewer dimensions."""


MODELS: dict[str, type[ModelConfig]] = {"cnn": CNNConfig, "mlp": MLPConfig}


def config_of(name: str) -> type[ModelConfig]:
    """The settings that the model `name` takes: of an entry of `MODELS`, or of a class of one's own.

    Raises:
        ValueError: no such model, or no such class; with the near miss.
    """
    if not is_dotted(name):
        if name not in MODELS:
            raise ValueError(f"{name!r} is no model; {near_miss(name, MODELS)}")
        return MODELS[name]
    config = getattr(load_class(name), "Config", ModelConfig)
    if not (isinstance(config, type) and issubclass(config, ModelConfig)):
        raise ValueError(f"{name!r}: its Config has to be a subclass of headrace.models.registry.ModelConfig")
    return config


def build(config: ModelConfig, shape: Any) -> nn.Module:
    """The torch module that `config` names, for inputs and outputs of `shape` (a `headrace.kinds.base.Shape`)."""
    network: nn.Module = load_class(config.name if is_dotted(config.name) else config.builds)(config, shape)
    return network
