"""A convolutional network for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.schema import Shape
from headrace.recipe.models import CNNConfig


class CNN(nn.Module):
    """Blocks of 3 × 3 convolutions with ReLU, each block ended by 2 × 2 max pooling; then one linear layer.

    With batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167) between convolution and ReLU, and spatial dropout (Tompson et al.
    2015, arXiv:1411.4280) after each block, if configured. Takes `(batch, channels, height, width)`, returns
    logits `(batch, classes)`.
    """

    def __init__(self, config: CNNConfig, shape: Shape) -> None:
        super().__init__()
        assert shape.image is not None
        channels, height, width = shape.image
        blocks: list[nn.Module] = []
        for width_out in config.channels:
            blocks += _block(config, channels, width_out)
            channels, height, width = width_out, (height + 1) // 2, (width + 1) // 2
        self.features = nn.Sequential(*blocks)
        pool: list[nn.Module] = []
        if config.pooling == "average":
            pool, height, width = [nn.AdaptiveAvgPool2d(1)], 1, 1
        linear = nn.Linear(channels * height * width, shape.outputs)
        self.head = nn.Sequential(*pool, nn.Flatten(), nn.Dropout(config.dropout), linear)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image))
        return logits


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that accepts one value per channel, as in a last batch of one row whose image shrinks to one pixel.

    One value has no variance, so the running statistics are used instead of the batch's, and are not updated.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def _block(config: CNNConfig, channels: int, width_out: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(config.convolutions):
        # batch norm has its own bias
        layers.append(nn.Conv2d(channels if i == 0 else width_out, width_out, 3, padding=1, bias=not config.batch_norm))
        layers += [BatchNorm(width_out)] if config.batch_norm else []
        layers.append(nn.ReLU())
    # ceil_mode allows images of odd size or one pixel height in every block
    layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return [*layers, nn.Dropout2d(config.dropout2d)] if config.dropout2d else layers
