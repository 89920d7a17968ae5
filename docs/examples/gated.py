"""A custom model: a dense network with a gate. In a recipe: `model: {name: "gated:GatedMLP", width: 64}`."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from headrace.models.schema import Shape
from headrace.recipe.models import ModelConfig


class GatedMLP(nn.Module):
    """One hidden layer, with a gate for each feature (Dauphin et al. 2017, arXiv:1612.08083).

    Takes `numeric` `(batch, columns)` float32 and `categorical` `(batch, columns)` int64, returns `(batch, outputs)`.
    """

    class Config(ModelConfig):
        """Settings in the recipe."""

        width: int = Field(default=64, ge=1)
        """Hidden features."""

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__()
        self.cardinalities = shape.cardinalities
        self.hidden = nn.Linear(shape.numeric + sum(shape.cardinalities), 2 * config.width)
        self.head = nn.Linear(config.width, shape.outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        one_hot = [nn.functional.one_hot(categorical[:, i], n).float() for i, n in enumerate(self.cardinalities)]
        logits: Tensor = self.head(nn.functional.glu(self.hidden(torch.cat([numeric, *one_hot], dim=1)), dim=1))
        return logits
