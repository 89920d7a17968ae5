"""Preprocessing, network and output as one module, which is trained, exported and served."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.calibration import calibration_error, fit_temperature
from headrace.models.schema import Schema
from headrace.models.target_transform import inverse, transform
from headrace.models.time_features import TimeFeatures


class ServedModel(nn.Module):
    """The interface of models for training and export. Each form of answer (class, value, text) has a subclass."""

    metric_name: ClassVar[str]
    """The name of what `metric` measures, for example `accuracy`."""
    loss_options: ClassVar[frozenset[str]] = frozenset()
    """Which of `label_smoothing` and `class_weights` the training loss supports."""
    label_smoothing: float = 0.0
    """Share of each training label that is spread over all classes."""
    class_weights: Tensor | None
    """Weight of a training row of each class, `(classes,)`; None for equal weights."""
    calibrations: ClassVar[frozenset[str]] = frozenset()
    """Values of `train.calibrate` that `calibrate` supports."""
    max_evaluation_batch: ClassVar[int] = 4096
    """Most rows that are evaluated together; small if a row's answer is large."""
    is_preprocessed: bool = False
    """Whether `raw` takes preprocessed inputs, which is the case in training if rows are preprocessed once."""

    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)
        self.preprocess = preprocess
        self.network = network

    def raw(self, *inputs: Tensor) -> Tensor:
        """Returns the input of the loss: logits `(batch, classes)`, or the standardised value `(batch, 1)`."""
        outputs: Tensor = self.network(*(inputs if self.is_preprocessed else self.preprocess(*inputs)))
        return outputs

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.answer(self.raw(*inputs))

    def answer(self, raw: Tensor) -> Tensor:
        """Converts `raw` to the output of the served graph."""
        raise TypeError(f"{type(self).__name__} has no answer")

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the mean loss of a batch, a scalar."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the mean of `metric_name` over a batch, a scalar, which is shown beside the loss."""
        raise TypeError(f"{type(self).__name__} has no metric")

    def count_items(self, target: Tensor) -> int | Tensor:
        """Returns the number of items, rows or tokens, over which `loss` and `metric` are means. If several processes share a
        batch, it is the weight of each one."""
        return len(target)

    def is_calibrated(self, how: str | None) -> bool:
        """Returns whether `calibrate` has something to fit."""
        return how in self.calibrations

    def calibrate(self, raw: Tensor, target: Tensor, how: str | None) -> dict[str, float]:
        """Calibrates the model on `raw` and `target` of all validation rows, after training.

        Args:
            how: `train.calibrate` of the recipe.

        Returns:
            The fitted values, by name.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """Returns fields of the contract that depend on the weights."""
        return {}


class LossModule(nn.Module):
    """A model and its loss as one module: torch.compile compiles it, and DDP wraps it."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return self.model.loss(self.model.raw(*inputs), target)


class Classifier(ServedModel):
    """Converts logits `(batch, classes)` to probabilities; targets are class indices `(batch,)`."""

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
        """Returns the cross entropy. In training, a network may return several logits per row, `(batch, views, classes)`:
        each has its own loss."""
        if not self.training:
            return F.cross_entropy(raw, target)
        if raw.dim() == 3:
            raw, target = raw.flatten(0, 1), target.repeat_interleave(raw.shape[1])
        if self.class_weights is None:
            return F.cross_entropy(raw, target, label_smoothing=self.label_smoothing)
        # the mean over rows, not over weights, so that gradients of several batches add up to those of one large batch
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
    """Converts the standardised value `(batch, 1)` to values `(batch,)` in the target's own unit."""

    metric_name = "mae"

    def __init__(
        self, preprocess: nn.Module, network: nn.Module, mean: float, std: float, transform: str | None = None
    ) -> None:
        """`transform` is `data.target_transform`; mean and deviation are those of the transformed target."""
        super().__init__(preprocess, network)
        self.transform = transform
        self.target_mean: Tensor
        self.target_std: Tensor
        self.register_buffer("target_mean", torch.tensor(mean))
        self.register_buffer("target_std", torch.tensor(std))

    def answer(self, raw: Tensor) -> Tensor:
        return inverse(raw[:, 0] * self.target_std + self.target_mean, self.transform)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Returns the Huber loss of the standardised target, which is robust to outliers."""
        return F.smooth_l1_loss(raw[:, 0], self.standardised(target))

    def standardised(self, target: Tensor) -> Tensor:
        """Returns what the network learns of targets in their own unit."""
        return (transform(target, self.transform) - self.target_mean) / self.target_std

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


class ScaleColour(nn.Module):
    """Pixels 0 to 255, `(batch, height, width, 3)` uint8 as clients send them, to `(batch, 3, height, width)` float32 from -1
    to 1."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image.permute(0, 3, 1, 2).float() / 127.5 - 1.0,)


MAX_DEVIATION = 1e6
"""Standard deviations at which values are clipped: larger ones would overflow in the layers that follow."""


class ScaleTable(nn.Module):
    """Fills missing numbers with the training mean and standardises; categorical indices pass through.

    Takes `numeric`, `times` and `categorical`, whichever the table has, and always returns numbers, of which those of
    times are the last, and categories.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.has_numeric, self.has_categorical = bool(schema.numeric), bool(schema.categorical)
        self.mean: Tensor
        self.std: Tensor
        # if float32 cannot tell a column's values apart, differences are computed in float64
        dtype = torch.float64 if any(c.wide for c in schema.numeric) else torch.float32
        self.register_buffer("mean", torch.tensor([c.mean for c in schema.numeric], dtype=dtype))
        self.register_buffer("std", torch.tensor([c.std for c in schema.numeric], dtype=dtype))
        self.times = TimeFeatures(schema.times) if schema.times else None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = inputs[0].shape[0]
        categorical = inputs[-1] if self.has_categorical else inputs[0].new_zeros((rows, 0), dtype=torch.int64)
        if self.times is None:
            return self._scaled(inputs[0], categorical), categorical
        features = self.times(inputs[1 if self.has_numeric else 0])
        return torch.cat([self._scaled(inputs[0], categorical), features], dim=1) if self.has_numeric else features, categorical

    def _scaled(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        if not self.has_numeric:
            return categorical.new_zeros((categorical.shape[0], 0), dtype=torch.float32)
        scaled = ((numeric - self.mean) / self.std).clamp(-MAX_DEVIATION, MAX_DEVIATION).float()
        return torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled)
