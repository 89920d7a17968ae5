"""The recipe's train section as a typed tree: how weights are learned. `docs/training.md` tells when to reach for which."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from headrace.recipe.section import Section

OptimizerName = Literal["adamw", "adam", "sgd", "rmsprop", "muon"]
MOMENTUM: dict[str, float] = {"sgd": 0.9, "rmsprop": 0.0, "muon": 0.95}
"""Optimizers with a momentum to set, and what they take by default."""


class EarlyStopping(Section):
    """Stop when the validation loss has not fallen for `patience` epochs; the best epoch's weights are kept."""

    patience: int = Field(default=2, ge=1)


class Averaging(Section):
    """Evaluate and export an average of the weights instead of the last ones."""

    method: Literal["ema", "swa"] = "ema"
    """A moving average over steps (Polyak & Juditsky 1992), or the mean of the last epochs (Izmailov et al. 2018,
    arXiv:1803.05407)."""
    decay: float = Field(default=0.999, gt=0.0, lt=1.0)
    """Of `ema`: how much of the average each step keeps; the first steps keep less."""
    start: float = Field(default=0.75, ge=0.0, lt=1.0)
    """Of `swa`: the share of the epochs after which the mean begins."""


class Augmentation(Section):
    """How each image is changed at random, anew in every epoch; all changes are one resampling of the batch on the device."""

    shift: float = Field(default=0.0, ge=0.0, le=0.5)
    """Most of the height and of the width by which an image moves."""
    scale: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Most by which it grows or shrinks: 0.1 gives 0.9 to 1.1 times its size."""
    rotate: float = Field(default=0.0, ge=0.0, le=180.0)
    """Most degrees by which it turns, either way."""
    crop: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Most of the height and of the width that is cut away; what is left is stretched to the whole."""


class TrainConfig(Section):
    """The training loop's settings."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added up for one step of the optimizer: the effect of a larger batch in less memory."""
    optimizer: OptimizerName = "adamw"
    learning_rate: float = Field(default=0.002, gt=0.0)
    momentum: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Of sgd (Nesterov's), rmsprop and muon."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Of matrices and filters; biases, norms and embeddings are left alone."""
    l1: float = Field(default=0.0, ge=0.0)
    """Times the sum of the same weights' absolute values, added to the loss."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    """How the learning rate moves after its warm-up: not at all, down to zero along a cosine (Loshchilov & Hutter 2017,
    arXiv:1608.03983), or up and down once (Smith 2018, arXiv:1803.09820)."""
    warm_up: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of all steps in which the learning rate rises to its peak."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each training label that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    class_weights: Literal["none", "balanced"] | dict[str | int, float] = "none"
    """What a row of each class counts for in the training loss: all the same, by how rare its class is, or as given."""
    gradient_clip: float | None = Field(default=None, gt=0.0)
    """Longest norm of all gradients together; longer ones are shortened to it."""
    averaging: Averaging | None = None
    augment: Augmentation | None = None
    early_stopping: EarlyStopping | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass: `auto` takes bfloat16 on a GPU that has it, and float32 on the CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile builds kernels for the model; `auto` measures it when the run is long enough to pay it back."""
    processes: int = Field(default=1, ge=1)
    """How many train together, each with its share of every batch; on GPUs each takes one. See `docs/scaling.md`."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: all of the model (Li et al. 2020, arXiv:2006.15704), or its part of every weight,
    gradient and moment (Zhao et al. 2023, arXiv:2304.11277)."""
    seed: int = 7
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a CUDA GPU when there is one."""
    calibrate: Literal["temperature"] | None = None
    """What is fitted on the validation rows after training: `temperature` divides the logits by one number, so that
    probabilities can be believed (Guo et al. 2017, arXiv:1706.04599)."""

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of every tensor alone."""
        return self.processes > 1 and self.strategy == "fsdp"

    @field_validator("class_weights")
    @classmethod
    def _positive(cls, weights: str | dict[str | int, float]) -> str | dict[str | int, float]:
        if isinstance(weights, dict):
            for label, weight in weights.items():
                if not weight > 0:
                    raise ValueError(f"{label!r} has weight {weight:g}; a weight is above 0")
        return weights

    @model_validator(mode="after")
    def _momentum_is_used(self) -> TrainConfig:
        if self.momentum is not None and self.optimizer not in MOMENTUM:
            raise ValueError(f"momentum: {self.optimizer} has its own; leave it out, or take one of {', '.join(MOMENTUM)}")
        return self

    @model_validator(mode="after")
    def _processes_have_work(self) -> TrainConfig:
        if self.processes > self.batch_size:
            raise ValueError(
                f"processes: {self.processes} cannot share batches of {self.batch_size} rows; lower it, or raise batch_size"
            )
        if self.processes > 1 and self.compile == "on":
            raise ValueError("compile: is for one process; leave it out, or set processes: 1")
        if self.is_sharded and self.optimizer == "muon":
            raise ValueError("strategy: muon needs whole matrices, and fsdp divides them; take ddp, or another optimizer")
        return self

    @model_validator(mode="after")
    def _average_is_reached(self) -> TrainConfig:
        if self.early_stopping and self.averaging and self.averaging.method == "swa":
            raise ValueError("averaging: swa is the mean of the last epochs; leave out early_stopping, or take `method: ema`")
        return self
