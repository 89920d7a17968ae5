"""A dense network, for tables with an embedding for each categorical column, and for images as vectors of pixels."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from headrace.models.schema import Shape
from headrace.models.text_vector import TextVector
from headrace.recipe.models import MLPConfig, TextVectorConfig


class MLP(nn.Module):
    """Embeddings concatenated with the numbers, then linear layers with ReLU.

    Entity embeddings as in Guo & Berkhahn 2016 (arXiv:1604.06737). Takes `numeric` `(batch, columns)` float32,
    `categorical` `(batch, columns)` int64, and for a table with a text `tokens` `(batch, length)` int64; or images
    `(batch, channels, height, width)` only. Returns `(batch, outputs)`.
    """

    def __init__(self, config: MLPConfig, shape: Shape) -> None:
        super().__init__()
        widths = [min(config.embedding, (n + 1) // 2) for n in shape.cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(n, width) for n, width in zip(shape.cardinalities, widths, strict=True))
        self.text = TextVector(config.text or TextVectorConfig(), shape) if shape.vocabulary else None
        features = (prod(shape.image) if shape.image else shape.numeric) + sum(widths)
        self.has_numbers = features > sum(widths)
        features += self.text.features if self.text is not None else 0
        layers: list[nn.Module] = []
        for width in config.hidden:
            layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(config.dropout)]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, shape.outputs))

    def forward(self, numeric: Tensor, categorical: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        embedded = [] if categorical is None else [part(categorical[:, i]) for i, part in enumerate(self.embeddings)]
        if self.text is not None:
            assert tokens is not None
            embedded.append(self.text(tokens))
        parts = [*([numeric.flatten(1)] if self.has_numbers else []), *embedded]
        outputs: Tensor = self.layers(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return outputs
