"""The tasks a recipe can name. One entry each; adding a kind is one file beside this one and one entry in `TASK_TYPES`, or a class
of one's own that the recipe names by its path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headrace.errors import near_miss
from headrace.plugins import is_dotted, load_class

if TYPE_CHECKING:
    from headrace.task_types.base import TaskType

Better = Literal["higher", "lower"]

CLASSIFICATION: dict[str, Better] = {
    "accuracy": "higher",
    "macro_f1": "higher",
    "auc": "higher",
    "log_loss": "lower",
}
CALIBRATION: dict[str, Better] = {"calibration_error": "lower"}
"""Of all rows together: a bound can be set on it, but two models cannot be compared row by row."""
REGRESSION: dict[str, Better] = {"mae": "lower", "rmse": "lower", "r2": "higher"}
INTERVALS: dict[str, Better] = {"coverage": "higher", "interval_width": "lower"}
"""Of a regression with `model.interval`."""
GENERATION: dict[str, Better] = {"bits_per_character": "lower"}
SUMMARISATION: dict[str, Better] = {"rouge_l": "higher", "rouge_l_gain": "higher", "rouge_l_baseline": "higher"}


@dataclass(frozen=True)
class TaskTypeEntry:
    """Where a kind is implemented (`module:class`), its metrics and the models that fit it."""

    implements: str
    metrics: dict[str, Better]
    models: tuple[str, ...]
    is_image: bool = False
    is_text: bool = False
    is_graph: bool = False


TASK_TYPES: dict[str, TaskTypeEntry] = {
    "image-classification": TaskTypeEntry(
        "headrace.task_types.image_classification:ImageClassification",
        CLASSIFICATION | CALIBRATION,
        ("cnn", "mlp"),
        is_image=True,
    ),
    "classification": TaskTypeEntry(
        "headrace.task_types.tabular:TabularClassification", CLASSIFICATION | CALIBRATION, ("mlp",)
    ),
    "regression": TaskTypeEntry("headrace.task_types.tabular:TabularRegression", REGRESSION | INTERVALS, ("mlp",)),
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
    """The entry of `task`: a key of `TASK_TYPES`, or the path `module:Class` of a `TaskType` of one's own, which fits every model.

    Raises:
        ValueError: no such task, or no such class; with the near miss.
    """
    if not is_dotted(task):
        if task not in TASK_TYPES:
            raise ValueError(f"{task!r} is no task; {near_miss(task, TASK_TYPES)}")
        return TASK_TYPES[task]
    metrics = getattr(load_class(task), "metrics", None)
    if not metrics:
        raise ValueError(f"{task!r} says no metrics; write such as `metrics = {{'accuracy': 'higher'}}` into the class")
    return TaskTypeEntry(task, metrics, models=())


def task_type_of(task: str) -> TaskType:
    """The implementation of `task`."""
    kind: TaskType = load_class(task_type_entry(task).implements)()
    return kind
