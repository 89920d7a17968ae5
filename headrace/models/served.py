"""Preprocessing, network and answer as one module: what is trained is what is exported is what is served."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.kinds.base import Schema
from headrace.models import registry
from headrace.models.registry import ModelConfig


class ScaleImage(nn.Module):
    """Pixels 0 to 255, `(batch, height, width)` uint8, to `(batch, 1, height, width)` float32 from -1 to 1."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image.unsqueeze(1).float() / 127.5 - 1.0,)


class ScaleTable(nn.Module):
    """Fills missing numbers with the training mean and standardises; categorical indices pass through.

    Takes `numeric`, `categorical` or both, whichever the table has, and always gives both.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.has_numeric, self.has_categorical = bool(schema.numeric), bool(schema.categorical)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([c.mean for c in schema.numeric], dtype=torch.float32))
        self.register_buffer("std", torch.tensor([c.std for c in schema.numeric], dtype=torch.float32))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = inputs[0].shape[0]
        categorical = inputs[-1] if self.has_categorical else inputs[0].new_zeros((rows, 0), dtype=torch.int64)
        if not self.has_numeric:
            return categorical.new_zeros((rows, 0), dtype=torch.float32), categorical
        numeric = inputs[0]
        scaled = (numeric - self.mean) / self.std
        return torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled), categorical


class ServedModel(nn.Module):
    """From a row as a client sends it to the answer: `(batch, classes)` probabilities, or `(batch,)` values."""

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__()
        self.preprocess = ScaleImage() if schema.shape.image else ScaleTable(schema)
        self.network = registry.build(config, schema.shape)
        self.classifies = schema.labels is not None
        self.target_mean: Tensor
        self.target_std: Tensor
        self.register_buffer("target_mean", torch.tensor(schema.target_mean))
        self.register_buffer("target_std", torch.tensor(schema.target_std))

    def raw(self, *inputs: Tensor) -> Tensor:
        """Logits `(batch, classes)`, or the standardised value `(batch, 1)`: what the loss takes."""
        outputs: Tensor = self.network(*self.preprocess(*inputs))
        return outputs

    def answer(self, raw: Tensor) -> Tensor:
        return raw.softmax(dim=1) if self.classifies else raw[:, 0] * self.target_std + self.target_mean

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.answer(self.raw(*inputs))

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, or the Huber loss of the standardised target (robust to the long tail of real targets)."""
        if self.classifies:
            return F.cross_entropy(raw, target)
        return F.smooth_l1_loss(raw[:, 0], (target - self.target_mean) / self.target_std)
