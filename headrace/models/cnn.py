"""A convolutional network for small images."""

from __future__ import annotations

from torch import Tensor, nn

from headrace.kinds.base import Shape
from headrace.models.registry import CNNConfig


class CNN(nn.Module):
    """Blocks of 3 × 3 convolution, ReLU and 2 × 2 max pooling, then one linear layer.

    Takes `(batch, channels, height, width)`, gives logits `(batch, classes)`.
    """

    def __init__(self, config: CNNConfig, shape: Shape) -> None:
        super().__init__()
        assert shape.image is not None
        channels, height, width = shape.image
        blocks: list[nn.Module] = []
        for width_out in config.channels:
            # ceil_mode lets an image of odd size, or one pixel high, pass through every block
            blocks += [nn.Conv2d(channels, width_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            channels, height, width = width_out, (height + 1) // 2, (width + 1) // 2
        self.features = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(channels * height * width, shape.outputs))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image))
        return logits
