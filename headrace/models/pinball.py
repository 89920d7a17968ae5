"""What regressions have in common that learn quantiles by the pinball loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.models.served import Regressor
from headrace.models.target_transform import inverse


class PinballRegressor(Regressor):
    """Standardised quantiles `(batch, quantiles)` to the value and its bounds or quantiles, `(batch, 1 + …)`, in the target's
    own unit. They are trained by the pinball loss (Koenker & Bassett 1978, Econometrica 46:33).
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
        super().__init__(preprocess, network, mean, std, transform)
        self.quantiles: Tensor
        self.register_buffer("quantiles", torch.tensor(list(quantiles)))

    def answer(self, raw: Tensor) -> Tensor:
        return inverse(self._transformed(raw), self.transform)

    @abstractmethod
    def _transformed(self, raw: Tensor) -> Tensor:
        """Returns the answer before the target's transform is undone: an interval and quantiles arrange their columns
        differently."""

    def losses(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the pinball loss of each quantile, `(quantiles,)`. That of the median is half the absolute error."""
        above = self.standardised(target).unsqueeze(1) - raw
        return torch.maximum(self.quantiles * above, (self.quantiles - 1) * above).mean(0)

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        error: Tensor = self.answer(raw)[:, 0] - target
        return error.abs().mean()

    def is_calibrated(self, how: str | None) -> bool:
        return True
