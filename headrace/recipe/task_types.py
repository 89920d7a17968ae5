"""The task types that a recipe can name.

A new task type is one file in `headrace/task_types` and one entry in `TASK_TYPES`, or a custom class that the recipe names by
its path `module:Class`, which can be used with every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.plugins import is_dotted, load_class
from headrace.recipe.data import DataConfig
from headrace.recipe.gate import GateConfig
from headrace.recipe.models import ModelConfig
from headrace.recipe.synonyms import near_metric, near_task
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
"""Metrics of a regression with `model.interval`, or of the outer two of `model.quantiles`."""
MULTILABEL: dict[str, Better] = {
    "micro_f1": "higher",
    "macro_f1": "higher",
    "jaccard": "higher",
    "subset_accuracy": "higher",
    "hamming_loss": "lower",
    "mean_average_precision": "higher",
    "log_loss": "lower",
}
MULTILABEL_BY_ROW = frozenset({"jaccard", "subset_accuracy", "hamming_loss", "log_loss"})
"""Metrics of several labels per row that are means over rows."""
GENERATION: dict[str, Better] = {"bits_per_character": "lower"}
TABLE_MODELS = ("mlp", "lightgbm", "xgboost")
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
    is_multilabel: bool = False
    """Whether a row has any number of labels."""
    compared_by_row: frozenset[str] | None = None
    """Metrics that `TaskType.row_scores` computes, where they alone can be compared; None: the metrics of classification and
    regression have tests of their own."""
    is_custom: bool = False
    """Whether it is a class of the user's; the rules below then check less."""

    @property
    def is_table(self) -> bool:
        """Whether its inputs are the named columns of a table."""
        return self.implements.startswith("headrace.task_types.tabular:")

    @property
    def is_classification(self) -> bool:
        """Whether it predicts one class per row."""
        return CALIBRATION.keys() <= self.metrics.keys() and not self.is_multilabel

    def check_data(self, data: DataConfig) -> None:
        """
        Raises:
            ValueError: `data` lacks a section that this task type needs.
        """
        if data.target_transform and not (self.is_custom or INTERVALS.keys() <= self.metrics.keys()):
            raise ValueError("data.target_transform: applies to regression only; remove it")
        if data.target_transform and data.target_columns:
            raise ValueError("data.target_transform: takes one target; remove it, or write one column under data.target")
        if self.is_image and data.image is None:
            raise ValueError(
                "data.image: image tasks need height and width, for example [28, 28], or {size: [64, 64]} for pictures in files"
            )
        if data.image is not None and not (self.is_image or self.is_custom):
            raise ValueError(
                "data.image: applies to image tasks only; use image-classification, multilabel-image-classification or "
                "image-regression, or remove it"
            )
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
            name = "interval" if getattr(model, "interval", None) is not None else "quantiles"
            raise ValueError(f"model.{name}: applies to regression only, and of one target, not to {task!r}; remove it")

    def check_training(self, train: TrainConfig, task: str) -> None:
        """
        Raises:
            ValueError: an option of `train` does not apply to this task type.
        """
        if train.augment and not (self.is_custom or self.is_image):
            raise ValueError(f"train.augment: applies to images only, not to {task!r}; remove it")
        if train.processes > 1 and self.is_graph:
            raise ValueError("train.processes: each step needs the whole graph, which cannot be divided; remove it")
        if train.label_threshold != 0.5 and not (self.is_custom or self.is_multilabel):
            raise ValueError(f"train.label_threshold: applies to several labels per row only, not to {task!r}; remove it")
        if train.calibrate and not (self.is_custom or CALIBRATION.keys() <= self.metrics.keys()):
            raise ValueError(f"train.calibrate: applies to class probabilities only, not to {task!r}; remove it")

    def check_gate(self, gate: GateConfig, model: ModelConfig, task: str) -> None:
        """
        Raises:
            ValueError: `gate` uses a metric that this task type or `model` does not have, or that cannot be compared.
        """
        for metric in gate.metrics:
            if metric not in self.metrics:
                raise ValueError(f"gate: unknown metric {metric!r} for {task!r}; {near_metric(metric, self.metrics)}")
            if metric in INTERVALS and not (self.is_custom or has_interval(model)):
                raise ValueError(f"gate: {metric!r} needs intervals; set model.interval, for example to 0.9")
        if gate.beat_champion is None:
            return
        metric, by_row = gate.beat_champion.metric, self.compared_by_row
        if metric in CALIBRATION or (by_row is not None and metric not in by_row):
            instead = f", or compare {', '.join(sorted(by_row))}" if by_row else ""
            message = f"{metric} cannot be compared row by row; set a bound in gate.require{instead}"
            raise ValueError(f"gate.beat_champion: {message}")


def has_interval(model: ModelConfig) -> bool:
    """Whether a regression predicts an interval or quantiles, and not only a value."""
    return any(getattr(model, name, None) is not None for name in ("interval", "quantiles"))


TASK_TYPES: dict[str, TaskTypeEntry] = {
    "image-classification": TaskTypeEntry(
        "headrace.task_types.image_classification:ImageClassification",
        CLASSIFICATION | CALIBRATION,
        ("cnn", "resnet", "mlp"),
        is_image=True,
        reads_chunks=True,
    ),
    "classification": TaskTypeEntry(
        "headrace.task_types.tabular:TabularClassification", CLASSIFICATION | CALIBRATION, TABLE_MODELS, reads_chunks=True
    ),
    "regression": TaskTypeEntry(
        "headrace.task_types.tabular:TabularRegression", REGRESSION | INTERVALS, TABLE_MODELS, reads_chunks=True
    ),
    "image-regression": TaskTypeEntry(
        "headrace.task_types.image_regression:ImageRegression",
        REGRESSION | INTERVALS,
        ("cnn", "resnet", "mlp"),
        is_image=True,
        reads_chunks=True,
    ),
    "text-classification": TaskTypeEntry(
        "headrace.task_types.text_classification:TextClassification",
        CLASSIFICATION | CALIBRATION,
        ("recurrent", "attention", "pretrained"),
        is_text=True,
    ),
    "multilabel-classification": TaskTypeEntry(
        "headrace.task_types.multilabel:MultilabelTable",
        MULTILABEL | CALIBRATION,
        ("mlp",),
        reads_chunks=True,
        is_multilabel=True,
        compared_by_row=MULTILABEL_BY_ROW,
    ),
    "multilabel-text-classification": TaskTypeEntry(
        "headrace.task_types.multilabel:MultilabelText",
        MULTILABEL | CALIBRATION,
        ("recurrent", "attention", "pretrained"),
        is_text=True,
        is_multilabel=True,
        compared_by_row=MULTILABEL_BY_ROW,
    ),
    "multilabel-image-classification": TaskTypeEntry(
        "headrace.task_types.multilabel:MultilabelImages",
        MULTILABEL | CALIBRATION,
        ("cnn", "resnet", "mlp"),
        is_image=True,
        reads_chunks=True,
        is_multilabel=True,
        compared_by_row=MULTILABEL_BY_ROW,
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
            raise ValueError(f"unknown task {task!r}; {near_task(task, TASK_TYPES)}")
        return TASK_TYPES[task]
    custom = load_class(task)
    metrics = getattr(custom, "metrics", None)
    if not metrics:
        raise ValueError(f"{task!r} has no metrics; add for example `metrics = {{'accuracy': 'higher'}}` to the class")
    return TaskTypeEntry(
        task,
        metrics,
        models=(),
        reads_chunks=bool(getattr(custom, "reads_chunks", False)),
        is_multilabel=bool(getattr(custom, "is_multilabel", False)),
        compared_by_row=getattr(custom, "compared_by_row", None),
        is_custom=True,
    )
