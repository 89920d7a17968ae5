"""Regression with several quantiles, calibrated on the validation rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.models.calibration import conformal_shift
from headrace.models.pinball import PinballRegressor
from headrace.models.target_transform import transform

MEDIAN = 0.5


class QuantileRegressor(PinballRegressor):
    """Standardised quantiles `(batch, quantiles)` to the value and the quantiles, `(batch, 1 + quantiles)`, in the target's own
    unit. The value is the median.

    `calibrate` shifts each quantile by the quantile of its errors, so that a share of `tau` of new rows from the same
    distribution as the validation rows is below the quantile `tau` (split conformal prediction, one-sided: Romano et al. 2019,
    arXiv:1905.03222).
    """

    def __init__(
        self,
        preprocess: nn.Module,
        network: nn.Module,
        mean: float,
        std: float,
        quantiles: Sequence[float],
        transform: str | None = None,
    ) -> None:
        super().__init__(preprocess, network, mean, std, quantiles, transform)
        self.middle = list(quantiles).index(MEDIAN)
        self.shift: Tensor
        self.register_buffer("shift", torch.zeros(len(quantiles)))

    def _transformed(self, raw: Tensor) -> Tensor:
        """Returns the value and the quantiles before the target's transform is undone, `(batch, 1 + quantiles)`."""
        found = list((raw * self.target_std + self.target_mean + self.shift).unbind(1))
        # quantiles are learned independently and may cross: none passes its neighbour on the side of the median
        for i in range(self.middle - 1, -1, -1):
            found[i] = torch.minimum(found[i], found[i + 1])
        for i in range(self.middle + 1, len(found)):
            found[i] = torch.maximum(found[i], found[i - 1])
        return torch.stack([found[self.middle], *found], dim=1)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the sum of the quantiles' pinball losses."""
        return self.losses(raw, target).sum()

    def calibrate(self, raw: Tensor, target: Tensor, how: str | None) -> dict[str, float]:
        self.shift.zero_()
        levels = [float(level) for level in self.quantiles.double()]
        before = self._transformed(raw)[:, 1:]
        error = transform(target, self.transform).unsqueeze(1) - before
        self.shift.copy_(torch.tensor([conformal_shift(error[:, i], level) for i, level in enumerate(levels)]))
        return {f"quantile_shift_{level:.4g}": float(shift) for level, shift in zip(levels, self.shift, strict=True)}
