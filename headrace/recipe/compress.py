"""The recipe's section `compress`: how the trained model is made smaller before it is released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from headrace.errors import near_miss
from headrace.recipe.models import BoostedTreesConfig, ModelConfig, config_of
from headrace.recipe.section import Fraction, Section
from headrace.recipe.synonyms import near_metric

if TYPE_CHECKING:
    from headrace.recipe.gate import GateConfig
    from headrace.recipe.task_types import TaskTypeEntry

GRAPH_METHODS = ("int8-dynamic", "int8-static", "float16", "bfloat16")
"""Methods that change the exported graph alone, within seconds."""
TRAINED_METHODS = ("prune", "distil")
"""Methods that train, on the training rows."""
METHODS = (*GRAPH_METHODS, *TRAINED_METHODS)
FIELDS = {
    "calibration_rows": ("int8-static",),
    "share": ("prune",),
    "student": ("distil",),
    "temperature": ("distil",),
    "soft": ("distil",),
    "epochs": TRAINED_METHODS,
}
"""Fields that apply to some methods only."""
GENERATES = ("text-generation", "summarisation")
"""Tasks whose model is exported as several graphs that run in turns."""


class CompressConfig(Section):
    """Makes the model smaller or faster. The gate then requires that it loses no more than `max_loss` against the same model
    uncompressed, on the same test rows."""

    method: str
    """`int8-dynamic`, `int8-static`, `float16`, `bfloat16`, `prune` or `distil`; see `docs/compress.md`."""
    max_loss: float = Field(default=0.005, gt=0.0)
    """How much worse the metric may be than that of the uncompressed model, in the metric's own unit."""
    metric: str | None = None
    """The metric that is compared; by default that of `gate.beat_champion`, else the first of `gate.require`, else the first
    of the task."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """One-sided confidence that the loss is below `max_loss`."""
    calibration_rows: int = Field(default=512, ge=16)
    """For `int8-static`: training rows on which the ranges of activations are measured."""
    share: Fraction = 0.8
    """For `prune`: share of the weights of linear and convolutional layers that are set to zero."""
    student: ModelConfig | None = None
    """For `distil`: the smaller network, with the fields of `model`; by default the recipe's own with half the width."""
    temperature: float = Field(default=4.0, ge=1.0)
    """For `distil`: by how much the logits of both networks are divided, which makes the teacher's answers softer."""
    soft: float = Field(default=0.9, gt=0.0, le=1.0)
    """For `distil`: weight of the teacher's answers in the loss; the true labels have the rest."""
    epochs: int | None = Field(default=None, ge=1)
    """For `prune` and `distil`: largest number of passes over the training rows; by default a third of `train.epochs` for
    `prune`, and `train.epochs` for `distil`."""

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str) -> str:
        check_method(method)
        return method

    @field_validator("student", mode="before")
    @classmethod
    def _parse_student(cls, value: Any) -> ModelConfig | None:
        if value is None or isinstance(value, ModelConfig):
            return value
        if not isinstance(value, dict) or "name" not in value:
            raise ValueError("`name` is missing; write the fields of a model, for example {name: mlp, hidden: [32]}")
        return config_of(str(value["name"])).model_validate(value)

    @model_validator(mode="after")
    def _check_fields(self) -> CompressConfig:
        for name in sorted(self.model_fields_set & FIELDS.keys()):
            if self.method not in FIELDS[name]:
                raise ValueError(f"{name}: applies to {' and '.join(FIELDS[name])} only, not to {self.method!r}; remove it")
        return self

    def described(self) -> str:
        """Returns the method and its settings in a few words, for tags and records."""
        settings = [name for name, methods in FIELDS.items() if self.method in methods and getattr(self, name) is not None]
        values = {name: getattr(self, name) for name in settings}
        shown = [f"{name} {value.name if isinstance(value, ModelConfig) else value}" for name, value in values.items()]
        return f"{self.method} ({', '.join([f'max_loss {self.max_loss:g}', *shown])})"


def check_method(method: str) -> None:
    """
    Raises:
        ValueError: the method is unknown; with the near miss.
    """
    if method in METHODS:
        return
    if "4" in method and "16" not in method:
        raise ValueError(
            f"no method {method!r}: weights of 4 bits are a format of language models (GGUF); known: {', '.join(METHODS)}"
        )
    raise ValueError(f"unknown method {method!r}; {near_miss(method, METHODS)}")


def main_metric(config: CompressConfig | None, gate: GateConfig, task_type: TaskTypeEntry) -> str:
    """Returns the metric by which a compressed model is compared with the uncompressed one."""
    named = config.metric if config is not None else None
    candidates = [metric for metric in (named, gate.main_metric, *task_type.metrics) if metric is not None]
    return next(metric for metric in candidates if metric == named or is_comparable(metric, task_type))


def is_comparable(metric: str, task_type: TaskTypeEntry) -> bool:
    """Returns whether two models can be compared by this metric on the same rows."""
    if task_type.is_custom:
        return True
    from headrace.recipe.task_types import CALIBRATION, INTERVALS

    by_row = task_type.compared_by_row
    return metric not in CALIBRATION | INTERVALS and (by_row is None or metric in by_row)


def check_compress(config: CompressConfig | None, model: ModelConfig, task: str, task_type: TaskTypeEntry) -> None:
    """
    Raises:
        ValueError: the section cannot be used for this task, or names a metric or a network that the task does not have.
    """
    if config is None:
        return
    if task in GENERATES:
        raise ValueError(f"compress: {reason_of(task)}; remove the section")
    if config.method in TRAINED_METHODS and isinstance(model, BoostedTreesConfig):
        raise ValueError(f"compress.method: {config.method} takes networks, and {model.name} is none; lower model.rounds")
    if config.metric is not None:
        if config.metric not in task_type.metrics:
            raise ValueError(f"compress.metric: unknown metric; {near_metric(config.metric, task_type.metrics)}")
        if not is_comparable(config.metric, task_type):
            raise ValueError(f"compress.metric: {config.metric} cannot be compared row by row; use another one")
    if config.student is not None:
        try:
            task_type.check_model(config.student, task)
        except ValueError as error:
            raise ValueError(f"compress.student: {error}") from None


def reason_of(task: str) -> str:
    """Returns why models of this task cannot be compressed."""
    return f"models of {task!r} are several graphs that run in turns, which is not supported"
