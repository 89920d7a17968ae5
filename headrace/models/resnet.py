"""A residual network for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.models.cnn import BatchNorm
from headrace.models.schema import Shape
from headrace.recipe.models import ResNetConfig

LARGE_SIDE = 96
"""From this height or width on, `stem: auto` is the large one."""


class ResNet(nn.Module):
    """Stages of residual blocks (He et al. 2016, https://arxiv.org/abs/1512.03385), with batch norm and ReLU.

    The last scale of each block starts at zero, so that a new network passes its input on (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677). Takes `(batch, channels, height, width)`, returns logits `(batch, classes)`.
    """

    def __init__(self, config: ResNetConfig, shape: Shape) -> None:
        super().__init__()
        assert shape.image is not None
        channels, *sides = shape.image
        is_large = config.stem == "large" or (config.stem == "auto" and min(sides) >= LARGE_SIDE)
        self.stem = nn.Sequential(*_stem(channels, config.width, is_large))
        blocks: list[nn.Module] = []
        width_in = config.width
        for stage in range(config.stages):
            width_out = config.width * 2**stage
            for i in range(config.depth):
                blocks.append(_Block(width_in, width_out, stride=2 if stage and not i else 1))
                width_in = width_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(width_in, shape.outputs)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(image)))
        return logits


class _Block(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        last = BatchNorm(width_out)
        nn.init.zeros_(last.weight)
        self.residual = nn.Sequential(
            _convolution(width_in, width_out, 3, stride),
            BatchNorm(width_out),
            nn.ReLU(),
            _convolution(width_out, width_out, 3, 1),
            last,
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width_in != width_out:
            self.shortcut = nn.Sequential(_convolution(width_in, width_out, 1, stride), BatchNorm(width_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _convolution(width_in: int, width_out: int, side: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, side, stride, padding=side // 2, bias=False)  # batch norm has its own bias


def _stem(channels: int, width: int, is_large: bool) -> list[nn.Module]:
    if not is_large:
        return [_convolution(channels, width, 3, 1), BatchNorm(width), nn.ReLU()]
    return [_convolution(channels, width, 7, 2), BatchNorm(width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
