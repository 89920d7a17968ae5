"""The recipe's section `train`: how weights are learned. `docs/training.md` explains when to use which option."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from headrace.recipe.periods import EXPECTED, parse_period
from headrace.recipe.section import Fraction, Section

OptimizerName = Literal["adamw", "adam", "sgd", "rmsprop", "muon"]
MOMENTUM: dict[str, float] = {"sgd": 0.9, "rmsprop": 0.0, "muon": 0.95}
"""Optimizers with a momentum setting, and its default."""


class EarlyStopping(Section):
    """Stops when the validation loss has not fallen for `patience` epochs; the weights of the best epoch are kept."""

    patience: int = Field(default=2, ge=1)
    """Epochs without improvement."""


class Averaging(Section):
    """Evaluates and exports an average of the weights instead of the last ones."""

    method: Literal["ema", "swa"] = "ema"
    """`ema`: an exponential moving average over steps (Polyak & Juditsky 1992). `swa`: the mean of the last epochs (Izmailov
    et al. 2018, arXiv:1803.05407)."""
    decay: float = Field(default=0.999, gt=0.0, lt=1.0)
    """For `ema`: how much of the average each step keeps; the first steps keep less."""
    start: float = Field(default=0.75, ge=0.0, lt=1.0)
    """For `swa`: the fraction of the epochs after which averaging begins."""


class Augmentation(Section):
    """Random changes of each image in every epoch, computed for the whole batch on the device: one resampling, and one
    change of the colours."""

    flip: Literal["horizontal", "vertical", "both"] | None = None
    """Directions in which half of the images are flipped."""

    shift: float = Field(default=0.0, ge=0.0, le=0.5)
    """Largest shift, as a fraction of the height and of the width."""
    scale: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Largest change of size: 0.1 gives 0.9 to 1.1 times the size."""
    rotate: float = Field(default=0.0, ge=0.0, le=180.0)
    """Largest rotation in degrees, in both directions."""
    crop: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Largest fraction of the height and of the width that is cut off; the rest is stretched to the full size."""
    brightness: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Largest change of brightness: 0.2 multiplies all values by 0.8 to 1.2."""
    contrast: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Largest change of contrast: 0.2 multiplies the distance to the image's mean by 0.8 to 1.2."""
    saturation: float = Field(default=0.0, ge=0.0, le=1.0)
    """For colour: largest change of saturation; with 1.0 from grey to twice as colourful."""
    hue: float = Field(default=0.0, ge=0.0, le=0.5)
    """For colour: largest change of hue in both directions, as a fraction of the colour circle; 0.5 gives every hue."""


class TrainConfig(Section):
    """Settings of the training loop."""

    window: int | str | None = None
    """Training and validation rows are the newest ones only: a number of values, for example 3 for the newest 3 months of a
    column of months or the newest 3 batches of an incremental source; or, for a column of times, a length such as 90 days or
    3 months. The column is that of `data.split.time`, else that of `data.incremental`. By default all rows."""
    start: Literal["random", "champion"] = "random"
    """The weights with which training starts: random ones, or those of the version in production where they fit. See
    `docs/retraining.md`."""
    epochs: int = Field(default=10, ge=1)
    """Largest number of passes over the training rows."""
    batch_size: int = Field(default=128, ge=1)
    """Rows per batch, of all processes together."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients are added up for one optimizer step: the effect of a larger batch in less memory."""
    optimizer: OptimizerName = "adamw"
    """Optimizer; docs/training.md compares them."""
    learning_rate: float = Field(default=0.002, gt=0.0)
    """Peak of the learning rate."""
    momentum: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Momentum of sgd (Nesterov's), rmsprop and muon."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Weight decay of matrices and filters; biases, norms and embeddings are excluded."""
    l1: float = Field(default=0.0, ge=0.0)
    """Factor of an L1 penalty on the same weights, added to the loss."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    """Learning rate after its warmup: constant, down to zero along a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983), or
    up and down once (Smith 2018, arXiv:1803.09820)."""
    warmup: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Fraction of all steps in which the learning rate rises to its peak."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of each training label that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    class_weights: Literal["none", "balanced"] | dict[str | int, float] = "none"
    """Weight of a row in the training loss: equal, inverse to the frequency of its class, or by label."""
    max_grad_norm: float | None = Field(default=None, gt=0.0)
    """Largest norm of all gradients together; gradients with a larger norm are scaled down to it."""
    averaging: Averaging | None = None
    augment: Augmentation | None = None
    early_stopping: EarlyStopping | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass: `auto` is bfloat16 on a GPU that supports it, and float32 on the CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile builds kernels for the model; `auto` measures whether a run is long enough to gain from it."""
    processes: int = Field(default=1, ge=1)
    """Processes that train together, each on its part of every batch; on GPUs each has its own. See `docs/scaling.md`."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each process holds: the whole model (Li et al. 2020, arXiv:2006.15704), or a shard of every weight, gradient and
    optimizer state (Zhao et al. 2023, arXiv:2304.11277)."""
    seed: int = 7
    """Seed of the initial weights, the order of the rows and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a CUDA GPU if there is one."""
    calibrate: Literal["temperature"] | None = None
    """Calibration on the validation rows after training: `temperature` divides the logits by one number (Guo et al. 2017,
    arXiv:1706.04599)."""

    label_threshold: Fraction | Literal["validation"] = 0.5
    """For several labels per row: a row gets the labels whose probability reaches it. `validation` chooses, for each label, the
    threshold with the highest F1 on the validation rows."""

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of every tensor."""
        return self.processes > 1 and self.strategy == "fsdp"

    @field_validator("window", mode="before")
    @classmethod
    def _check_window(cls, window: Any) -> Any:
        is_number = isinstance(window, int) and not isinstance(window, bool)
        if window is None or (is_number and window >= 1) or parse_period(window) is not None:
            return window
        raise ValueError(f"expected a number of values, at least 1, or {EXPECTED}")

    @field_validator("class_weights")
    @classmethod
    def _check_class_weights(cls, weights: str | dict[str | int, float]) -> str | dict[str | int, float]:
        if isinstance(weights, dict):
            for label, weight in weights.items():
                if not weight > 0:
                    raise ValueError(f"{label!r} has weight {weight:g}; weights have to be above 0")
        return weights

    @model_validator(mode="after")
    def _check_momentum(self) -> TrainConfig:
        if self.momentum is not None and self.optimizer not in MOMENTUM:
            raise ValueError(f"momentum: {self.optimizer} has no such setting; remove it, or use one of {', '.join(MOMENTUM)}")
        return self

    @model_validator(mode="after")
    def _check_processes(self) -> TrainConfig:
        if self.processes > self.batch_size:
            raise ValueError(
                f"processes: {self.processes} cannot share batches of {self.batch_size} rows; lower it, or raise batch_size"
            )
        if self.processes > 1 and self.compile == "on":
            raise ValueError("compile: supports one process only; remove it, or set processes: 1")
        if self.is_sharded and self.optimizer == "muon":
            raise ValueError("strategy: muon needs whole matrices, and fsdp shards them; use ddp, or another optimizer")
        return self

    @model_validator(mode="after")
    def _check_averaging(self) -> TrainConfig:
        if self.early_stopping and self.averaging and self.averaging.method == "swa":
            raise ValueError("averaging: swa needs the last epochs; remove early_stopping, or use `method: ema`")
        return self
