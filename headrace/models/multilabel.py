"""Several labels per row: a probability for each label on its own, and the threshold from which the label is given."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.calibration import LARGEST_TEMPERATURE
from headrace.models.served import ServedModel


class MultilabelClassifier(ServedModel):
    """Converts logits `(batch, labels)` to independent probabilities; targets are 1 for each label of a row and 0 for the
    others, `(batch, labels)` float32."""

    metric_name = "label_accuracy"
    calibrations = frozenset({"temperature"})
    label_threshold: float | Literal["validation"] = 0.5
    """`train.label_threshold` of the recipe."""

    def __init__(self, preprocess: nn.Module, network: nn.Module, labels: int) -> None:
        super().__init__(preprocess, network)
        self.temperatures: Tensor
        self.thresholds: Tensor
        self.register_buffer("temperatures", torch.ones(labels))
        self.register_buffer("thresholds", torch.full((labels,), 0.5, dtype=torch.float64))

    def answer(self, raw: Tensor) -> Tensor:
        return (raw / self.temperatures).sigmoid()

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the mean cross entropy over labels. In training, a network may return several logits per row and label,
        `(batch, views, labels)`: each has its own loss."""
        if raw.dim() == 3:
            target = target.unsqueeze(1).expand_as(raw)
        return F.binary_cross_entropy_with_logits(raw, target)

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the share of labels that are rightly given or not given, from a probability of one half on."""
        return ((raw > 0) == (target > 0.5)).float().mean()

    def is_calibrated(self, how: str | None) -> bool:
        return how is not None or self.label_threshold != 0.5

    def calibrate(self, raw: Tensor, target: Tensor, how: str | None) -> dict[str, float]:
        """Fits a temperature for each label, if `how` asks for it, and then the thresholds."""
        found: dict[str, float] = {}
        if how == "temperature":
            before = label_calibration_error(self.answer(raw), target)
            fitted = [fit_label_temperature(raw[:, i], target[:, i]) for i in range(raw.shape[1])]
            self.temperatures.copy_(torch.tensor(fitted))
            found = {
                "temperature_smallest": min(fitted),
                "temperature_largest": max(fitted),
                "val_calibration_error_before": before,
                "val_calibration_error": label_calibration_error(self.answer(raw), target),
            }
        if self.label_threshold == "validation":
            probabilities, given = self.answer(raw).double().cpu().numpy(), target.cpu().numpy() > 0.5
            chosen = [best_threshold(probabilities[:, i], given[:, i]) for i in range(raw.shape[1])]
            self.thresholds.copy_(torch.tensor(chosen, dtype=torch.float64))
            found |= {"threshold_smallest": min(chosen), "threshold_largest": max(chosen)}
        else:
            self.thresholds.fill_(self.label_threshold)
        return found

    def describe(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds.tolist()}


def fit_label_temperature(logits: Tensor, target: Tensor) -> float:
    """Returns the temperature T that maximises the likelihood of `target` `(rows,)` under sigmoid(logits / T), between 1/100
    and 100; 1 if all or none of the rows have the label, since any T or none would then be best."""
    from scipy.optimize import minimize_scalar

    logits, target = logits.double().cpu(), target.double().cpu()
    if not 0 < float(target.mean()) < 1:
        return 1.0

    def loss(inverse: float) -> float:
        return float(F.binary_cross_entropy_with_logits(logits * inverse, target))

    bounds = (1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE)
    return float(1 / minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def label_calibration_error(probabilities: Tensor, target: Tensor) -> float:
    """Returns the expected calibration error over all pairs of row and label, as in the evaluation."""
    from headrace.evaluation.metrics import calibration_bins

    return calibration_bins(probabilities.double().cpu().numpy().ravel(), target.cpu().numpy().ravel() > 0.5)[1]


def best_threshold(probabilities: NDArray[np.float64], given: NDArray[np.bool_]) -> float:
    """Returns the threshold with the highest F1 for one label, halfway between two probabilities `(rows,)`; 0.5 if no row has
    the label."""
    if not given.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    right = np.cumsum(given[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + given.sum())  # with the first 1, 2, … rows
    ends = np.append(ranked[1:] < ranked[:-1], True)  # no threshold separates equal probabilities
    best = int(np.where(ends, f1, -1.0).argmax())
    below = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
    return float(np.clip((float(ranked[best]) + below) / 2, 1e-6, 1 - 1e-6))
