"""The task types that a recipe can name.

A new task type is one file in `headrace/task_types` and one entry in `TASK_TYPES`, or a custom class that the recipe names by
its path `module:Class`, which can be used with every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.errors import near_miss
from headrace.plugins import is_dotted, load_class
from headrace.recipe.data import DataConfig
from headrace.recipe.gate import GateConfig
from headrace.recipe.models import ModelConfig
from headrace.recipe.training import TrainConfig

Better = Literal["higher", "lower"]

CLASSIFICATION: dict[str, Better] = {
    "accuracy": "higher",
    "macro_f1": "higher",
    "auc": "higher",
    "log_loss": "lower",
}
CALIBRATION: dict[str, Better] = {"calibration_error": "lower"}
"""A metric of all rows together: it can be bounded, but two models cannot be compared on it row by row."""
REGRESSION: dict[str, Better] = {"mae": "lower", "rmse": "lower", "r2": "higher"}
INTERVALS: dict[str, Better] = {"coverage": "higher", "interval_width": "lower"}
"""Metrics of a regression with `model.interval`."""
GENERATION: dict[str, Better] = {"bits_per_character": "lower"}
SUMMARISATION: dict[str, Better] = {"rouge_l": "higher", "rouge_l_gain": "higher", "rouge_l_baseline": "higher"}


@dataclass(frozen=True)
class TaskTypeEntry:
    """A task type: where it is implemented (`module:Class`), its metrics, and the models that can be used for it."""

    implements: str
    metrics: dict[str, Better]
    models: tuple[str, ...]
    is_image: bool = False
    is_text: bool = False
    is_graph: bool = False
    reads_chunks: bool = False
    """Whether the task type accepts a table in chunks, for data larger than memory."""
    is_custom: bool = False
    """Whether it is a class of the user's; the rules below then check less."""

    def check_data(self, data: DataConfig) -> None:
        """
        Raises:
            ValueError: `data` lacks a section that this task type needs.
        """
        if self.is_image and data.image is None:
            raise ValueError("data.image: image tasks need height and width, for example [28, 28]")
        if self.is_text and data.text is None:
            raise ValueError("data.text: text tasks need the column of the text, for example {column: text}")
        if self.is_graph and data.graph is None:
            raise ValueError(
                "data.graph: graph tasks need the ids of the nodes and the edges, for example {node: id, edges: edges.txt}"
            )

    def check_model(self, model: ModelConfig, task: str) -> None:
        """
        Raises:
            ValueError: `model` cannot be used for this task type, or has settings for another one.
        """
        if self.models and not is_dotted(model.name) and model.name not in self.models:
            raise ValueError(f"model: {model.name!r} cannot be used for {task!r}; use one of {', '.join(self.models)}")
        if has_interval(model) and not (self.is_custom or INTERVALS.keys() <= self.metrics.keys()):
            raise ValueError(f"model.interval: applies to regression only, not to {task!r}; remove it")

    def check_training(self, train: TrainConfig, task: str) -> None:
        """
        Raises:
            ValueError: an option of `train` does not apply to this task type.
        """
        if train.augment and not (self.is_custom or self.is_image):
            raise ValueError(f"train.augment: applies to images only, not to {task!r}; remove it")
        if train.processes > 1 and self.is_graph:
            raise ValueError("train.processes: each step needs the whole graph, which cannot be divided; remove it")
        if train.calibrate and not (self.is_custom or CALIBRATION.keys() <= self.metrics.keys()):
            raise ValueError(f"train.calibrate: applies to class probabilities only, not to {task!r}; remove it")

    def check_gate(self, gate: GateConfig, model: ModelConfig, task: str) -> None:
        """
        Raises:
            ValueError: `gate` uses a metric that this task type or `model` does not have, or that cannot be compared.
        """
        for metric in gate.metrics:
            if metric not in self.metrics:
                raise ValueError(f"gate: unknown metric {metric!r} for {task!r}; {near_miss(metric, self.metrics)}")
            if metric in INTERVALS and not (self.is_custom or has_interval(model)):
                raise ValueError(f"gate: {metric!r} needs intervals; set model.interval, for example to 0.9")
        if gate.beat_champion and gate.beat_champion.metric in CALIBRATION:
            raise ValueError(
                f"gate.beat_champion: {gate.beat_champion.metric} cannot be compared row by row; set a bound in gate.require"
            )


def has_interval(model: ModelConfig) -> bool:
    """Whether a regression predicts an interval and not only a value."""
    return getattr(model, "interval", None) is not None


TASK_TYPES: dict[str, TaskTypeEntry] = {
    "image-classification": TaskTypeEntry(
        "headrace.task_types.image_classification:ImageClassification",
        CLASSIFICATION | CALIBRATION,
        ("cnn", "mlp"),
        is_image=True,
    ),
    "classification": TaskTypeEntry(
        "headrace.task_types.tabular:TabularClassification", CLASSIFICATION | CALIBRATION, ("mlp",), reads_chunks=True
    ),
    "regression": TaskTypeEntry(
        "headrace.task_types.tabular:TabularRegression", REGRESSION | INTERVALS, ("mlp",), reads_chunks=True
    ),
    "text-classification": TaskTypeEntry(
        "headrace.task_types.text_classification:TextClassification",
        CLASSIFICATION | CALIBRATION,
        ("recurrent", "attention"),
        is_text=True,
    ),
    "text-generation": TaskTypeEntry(
        "headrace.task_types.text_generation:TextGeneration", GENERATION, ("recurrent-language", "gpt"), is_text=True
    ),
    "summarisation": TaskTypeEntry(
        "headrace.task_types.summarisation:Summarisation", SUMMARISATION, ("seq2seq",), is_text=True
    ),
    "node-classification": TaskTypeEntry(
        "headrace.task_types.node_classification:NodeClassification",
        CLASSIFICATION | CALIBRATION,
        ("gcn", "gat", "appnp"),
        is_graph=True,
    ),
    "graph-classification": TaskTypeEntry(
        "headrace.task_types.graph_classification:GraphClassification", CLASSIFICATION | CALIBRATION, ("gcn", "gat", "appnp")
    ),
}


def task_type_entry(task: str) -> TaskTypeEntry:
    """Returns the entry of a task: a key of `TASK_TYPES`, or the path `module:Class` of a custom `TaskType`.

    Raises:
        ValueError: the task or class is unknown, with the near miss; or the class has no metrics.
    """
    if not is_dotted(task):
        if task not in TASK_TYPES:
            raise ValueError(f"unknown task {task!r}; {near_miss(task, TASK_TYPES)}")
        return TASK_TYPES[task]
    custom = load_class(task)
    metrics = getattr(custom, "metrics", None)
    if not metrics:
        raise ValueError(f"{task!r} has no metrics; add for example `metrics = {{'accuracy': 'higher'}}` to the class")
    reads_chunks = bool(getattr(custom, "reads_chunks", False))
    return TaskTypeEntry(task, metrics, models=(), reads_chunks=reads_chunks, is_custom=True)
