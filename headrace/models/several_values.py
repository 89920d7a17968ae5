"""Regression with several targets: one network with an output for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.served import ServedModel


class SeveralRegressor(ServedModel):
    """Converts standardised values `(batch, targets)` to values in each target's own unit; targets `(batch, targets)` are in
    these units too."""

    metric_name = "scaled_mae"

    def __init__(self, preprocess: nn.Module, network: nn.Module, means: Sequence[float], stds: Sequence[float]) -> None:
        super().__init__(preprocess, network)
        self.target_means: Tensor
        self.target_stds: Tensor
        self.register_buffer("target_means", torch.tensor(means))
        self.register_buffer("target_stds", torch.tensor(stds))

    def answer(self, raw: Tensor) -> Tensor:
        return raw * self.target_stds + self.target_means

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the Huber loss of the standardised targets, each of which counts the same."""
        return F.smooth_l1_loss(raw, (target - self.target_means) / self.target_stds)

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the mean absolute error in standard deviations of each target."""
        return ((self.answer(raw) - target) / self.target_stds).abs().mean()
