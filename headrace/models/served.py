"""Preprocessing, network and answer as one module: what is trained is what is exported is what is served."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.calibration import calibration_error, fit_temperature
from headrace.models.schema import Schema


class ServedModel(nn.Module):
    """What the training loop and the export know of a model. One subclass an answer: a class, a value, a text."""

    metric_name: ClassVar[str]
    """What `metric` measures, such as `accuracy`."""
    loss_options: ClassVar[frozenset[str]] = frozenset()
    """What of `label_smoothing` and `class_weights` the training loss minds."""
    label_smoothing: float = 0.0
    """Share of each training label that is spread over all classes."""
    class_weights: Tensor | None
    """What a training row of each class counts for, `(classes,)`; nothing where all count the same."""
    calibrations: ClassVar[frozenset[str]] = frozenset()
    """What `calibrate` can be asked to fit."""
    max_evaluation_batch: ClassVar[int] = 4096
    """Most rows that are evaluated together, where a row's answer is large."""
    is_preprocessed: bool = False
    """Whether `raw` takes what `preprocess` gives: in training, where rows are preprocessed once."""

    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)
        self.preprocess = preprocess
        self.network = network

    def raw(self, *inputs: Tensor) -> Tensor:
        """What the loss takes: logits `(batch, classes)`, or the standardised value `(batch, 1)`."""
        outputs: Tensor = self.network(*(inputs if self.is_preprocessed else self.preprocess(*inputs)))
        return outputs

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.answer(self.raw(*inputs))

    def answer(self, raw: Tensor) -> Tensor:
        """What the served graph gives for `raw`."""
        raise TypeError(f"{type(self).__name__} has no answer")

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        """Mean of `metric_name` over a batch, a scalar: what a person watches beside the loss."""
        raise TypeError(f"{type(self).__name__} has no metric")

    def count_items(self, target: Tensor) -> int | Tensor:
        """What `loss` and `metric` are means over, of these targets: rows, or such as tokens. Of several processes that share
        a batch each one weighs as much as it counts."""
        return len(target)

    def is_calibrated(self, how: str | None) -> bool:
        """Whether `calibrate` has something to fit."""
        return how in self.calibrations

    def calibrate(self, raw: Tensor, target: Tensor, how: str | None) -> dict[str, float]:
        """Fits what makes the answers honest, by `raw` and `target` of all validation rows, once training is done.

        Args:
            how: `train.calibrate` of the recipe.

        Returns:
            What was found, by name.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """Fields of the contract that the weights decide."""
        return {}


class LossModule(nn.Module):
    """A model and its loss as one module: torch.compile compiles it, and DDP wraps it."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return self.model.loss(self.model.raw(*inputs), target)


class Classifier(ServedModel):
    """Logits `(batch, classes)` to probabilities; targets are class indices `(batch,)`."""

    metric_name = "accuracy"
    loss_options = frozenset({"label_smoothing", "class_weights"})
    calibrations = frozenset({"temperature"})

    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__(preprocess, network)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(1.0))

    def answer(self, raw: Tensor) -> Tensor:
        return (raw / self.temperature).softmax(dim=1)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """In training a network may give several logits a row, `(batch, views, classes)`: each is judged alone."""
        if not self.training:
            return F.cross_entropy(raw, target)
        if raw.dim() == 3:
            raw, target = raw.flatten(0, 1), target.repeat_interleave(raw.shape[1])
        if self.class_weights is None:
            return F.cross_entropy(raw, target, label_smoothing=self.label_smoothing)
        # the mean over rows, not over weights: a batch with few rare rows counts for less, and the sum over batches is exact
        return F.cross_entropy(raw, target, self.class_weights, reduction="none", label_smoothing=self.label_smoothing).mean()

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        return (raw.argmax(dim=1) == target).float().mean()

    def calibrate(self, raw: Tensor, target: Tensor, how: str | None) -> dict[str, float]:
        self.temperature.fill_(1.0)
        before = calibration_error(self.answer(raw), target)
        self.temperature.fill_(fit_temperature(raw, target))
        after = calibration_error(self.answer(raw), target)
        return {
            "temperature": float(self.temperature),
            "val_calibration_error_before": before,
            "val_calibration_error": after,
        }

    def describe(self) -> dict[str, Any]:
        temperature = float(self.temperature)
        return {} if temperature == 1.0 else {"temperature": temperature}


class Regressor(ServedModel):
    """The standardised value `(batch, 1)` to values `(batch,)` in the target's own unit."""

    metric_name = "mae"

    def __init__(self, preprocess: nn.Module, network: nn.Module, mean: float, std: float) -> None:
        super().__init__(preprocess, network)
        self.target_mean: Tensor
        self.target_std: Tensor
        self.register_buffer("target_mean", torch.tensor(mean))
        self.register_buffer("target_std", torch.tensor(std))

    def answer(self, raw: Tensor) -> Tensor:
        return raw[:, 0] * self.target_std + self.target_mean

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """The Huber loss of the standardised target: robust to the long tail of real targets."""
        return F.smooth_l1_loss(raw[:, 0], (target - self.target_mean) / self.target_std)

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        return (self.answer(raw) - target).abs().mean()


class AsIs(nn.Module):
    """Inputs that need no preprocessing."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs


class ScaleImage(nn.Module):
    """Pixels 0 to 255, `(batch, height, width)` uint8, to `(batch, 1, height, width)` float32 from -1 to 1."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image.unsqueeze(1).float() / 127.5 - 1.0,)


FARTHEST = 1e6
"""Standard deviations: a value beyond says no more than one so far out, and would overflow in the layers that follow."""


class ScaleTable(nn.Module):
    """Fills missing numbers with the training mean and standardises; categorical indices pass through.

    Takes `numeric`, `categorical` or both, whichever the table has, and always gives both.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.has_numeric, self.has_categorical = bool(schema.numeric), bool(schema.categorical)
        self.mean: Tensor
        self.std: Tensor
        # where float32 could not tell a column's values apart, differences are taken in float64
        dtype = torch.float64 if any(c.wide for c in schema.numeric) else torch.float32
        self.register_buffer("mean", torch.tensor([c.mean for c in schema.numeric], dtype=dtype))
        self.register_buffer("std", torch.tensor([c.std for c in schema.numeric], dtype=dtype))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = inputs[0].shape[0]
        categorical = inputs[-1] if self.has_categorical else inputs[0].new_zeros((rows, 0), dtype=torch.int64)
        if not self.has_numeric:
            return categorical.new_zeros((rows, 0), dtype=torch.float32), categorical
        numeric = inputs[0]
        scaled = ((numeric - self.mean) / self.std).clamp(-FARTHEST, FARTHEST).float()
        return torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled), categorical
