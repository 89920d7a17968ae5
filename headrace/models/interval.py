"""Regression with an interval: quantile regression, calibrated on the validation rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.models.calibration import conformal_margin, largest_level
from headrace.models.pinball import PinballRegressor
from headrace.models.target_transform import transform


class IntervalRegressor(PinballRegressor):
    """Three standardised quantiles `(batch, 3)` (lower, median, upper) to value, lower and upper bound `(batch, 3)` in the
    target's own unit.

    `calibrate` sets the margin that conformalised quantile regression adds (Romano et al. 2019, arXiv:1905.03222), so that the
    interval contains `level` of new rows from the same distribution as the validation rows, however well the quantiles were
    learned.
    """

    def __init__(
        self, preprocess: nn.Module, network: nn.Module, mean: float, std: float, level: float, transform: str | None = None
    ) -> None:
        super().__init__(preprocess, network, mean, std, [(1 - level) / 2, 0.5, (1 + level) / 2], transform)
        self.level = level
        self.margin: Tensor
        self.register_buffer("margin", torch.tensor(0.0))

    def _transformed(self, raw: Tensor) -> Tensor:
        """Returns value, lower and upper bound before the target's transform is undone, `(batch, 3)`."""
        low, value, high = (raw * self.target_std + self.target_mean).unbind(1)
        # quantiles are learned independently and may cross
        low, high = torch.minimum(low, value) - self.margin, torch.maximum(high, value) + self.margin
        # a negative margin moves the bounds inwards, but never past the value
        return torch.stack([value, torch.minimum(low, value), torch.maximum(high, value)], dim=1)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the sum of the quantiles' pinball losses. The median's counts twice: it is half the absolute error."""
        lower, middle, upper = self.losses(raw, target)
        loss: Tensor = lower + 2 * middle + upper
        return loss

    def calibrate(self, raw: Tensor, target: Tensor, how: str | None) -> dict[str, float]:
        self.margin.zero_()
        _, low, high = self._transformed(raw).unbind(1)
        target = transform(target, self.transform)
        before = ((low <= target) & (target <= high)).double().mean()
        self.margin.fill_(conformal_margin(low, high, target, self.level))
        found = {"interval_margin": float(self.margin), "val_coverage_before": float(before)}
        reached = largest_level(len(target))
        return found if self.level <= reached else {**found, "interval_level_reached": reached}
