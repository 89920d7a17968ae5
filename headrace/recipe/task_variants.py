"""How the form of the data changes a task: several numeric targets, and a text beside the columns of a table.

`data.target: [a, b]` makes a regression, of a table or of images, predict several numbers, and `data.text` gives a table a
text column. The task keeps its name; implementation and metrics are those of the variant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from headrace.recipe.data import DataConfig
from headrace.recipe.models import ModelConfig, PretrainedConfig
from headrace.recipe.task_types import REGRESSION, Better, TaskTypeEntry

SEVERAL_VALUES = {
    "headrace.task_types.tabular:TabularRegression": "headrace.task_types.several_values:SeveralValues",
    "headrace.task_types.image_regression:ImageRegression": "headrace.task_types.image_regression:ImageSeveralValues",
}
"""From the implementation of a task with one number to that with several."""
WITH_TEXT = {
    "headrace.task_types.tabular:TabularClassification": "headrace.task_types.text_table:TextTableClassification",
    "headrace.task_types.tabular:TabularRegression": "headrace.task_types.text_table:TextTableRegression",
    "headrace.task_types.multilabel:MultilabelTable": "headrace.task_types.text_table:TextTableMultilabel",
    "headrace.task_types.several_values:SeveralValues": "headrace.task_types.text_table:TextTableSeveralValues",
}
"""From the implementation of a task on a table to that with a text beside the columns."""


def variant_of(entry: TaskTypeEntry, data: DataConfig) -> TaskTypeEntry:
    """Returns the entry of a task for data of this form."""
    if len(data.targets) > 1 and entry.implements in SEVERAL_VALUES:
        metrics, by_row = several_metrics(data.targets)
        entry = replace(entry, implements=SEVERAL_VALUES[entry.implements], metrics=metrics, compared_by_row=by_row)
    if data.text is not None and entry.implements in WITH_TEXT:
        # the vocabulary is learned from all texts of the training rows at once
        entry = replace(entry, implements=WITH_TEXT[entry.implements], reads_chunks=False)
    return entry


def check_targets(entry: TaskTypeEntry, data: DataConfig, task: str) -> None:
    """
    Raises:
        ValueError: the task does not predict targets of this form.
    """
    if data.label_separator and not (entry.is_multilabel or entry.is_custom):
        raise ValueError(f"data.label_separator: applies to tasks with several labels per row, not to {task!r}; remove it")
    if entry.is_multilabel and data.split.per_class is not None:
        raise ValueError("data.split.per_class: needs one label per row; split by shares, by time or by given rows")
    _check_folders(entry, data, task)
    if len(data.targets) < 2 or entry.is_custom or entry.is_multilabel or entry.compared_by_row is not None:
        return
    raise ValueError(
        f"data.target: {task!r} predicts one column, got {len(data.targets)}; name one of them, or use regression (of "
        "images: image-regression) for several numbers, and a multilabel task for columns of true and false"
    )


def _check_folders(entry: TaskTypeEntry, data: DataConfig, task: str) -> None:
    """
    Raises:
        ValueError: the folder of a picture is to be what it is not: several labels, or a number.
    """
    if data.pictures is None or data.pictures.path is not None or entry.is_custom:
        return
    has_labels = entry.is_multilabel and data.label_separator
    if entry.implements.endswith(":ImageClassification") or (has_labels and not data.target_columns):
        return
    what = "labels" if entry.is_multilabel else "numbers"
    raise ValueError(
        f"data.image.path: the folder of a picture is its only label, and {task!r} needs {what} of each picture; use a table "
        f"with a column of paths (data.image.path) and columns of {what}"
    )


def check_text(entry: TaskTypeEntry, data: DataConfig, model: ModelConfig, task: str) -> None:
    """
    Raises:
        ValueError: the task takes no text, or `model` has settings for one and the data has none.
    """
    has_text = entry.implements in WITH_TEXT.values()
    if data.text is not None and not (has_text or entry.is_text or entry.is_custom):
        raise ValueError(f"data.text: applies to texts and tables, not to {task!r}; remove it")
    if data.text is not None and has_text and data.text.column in data.targets:
        raise ValueError(f"data.text.column: {data.text.column!r} is what is predicted; name another column")
    if isinstance(model, PretrainedConfig) and data.text is not None:
        for name in ("tokens", "vocabulary", "lowercase"):
            if name in data.text.model_fields_set:
                raise ValueError(f"data.text.{name}: a pretrained model has a tokenizer of its own; remove it")
    if getattr(model, "text", None) is not None and not (has_text or entry.is_custom):
        raise ValueError("model.text: needs a table with a text; set data.text, for example {column: notes}, or remove it")


def several_metrics(targets: Sequence[str]) -> tuple[dict[str, Better], frozenset[str]]:
    """Returns the metrics of a regression with several targets, and those that can be compared row by row."""
    means: dict[str, Better] = {"scaled_mae": "lower", **REGRESSION}
    each: dict[str, Better] = {of_target(name, target): better for target in targets for name, better in REGRESSION.items()}
    by_row = frozenset({"scaled_mae", "mae", *(of_target("mae", target) for target in targets)})
    return means | each, by_row


def of_target(metric: str, target: str) -> str:
    """Returns the name of a metric of one of several targets, with the characters that MLflow allows.

    >>> of_target("mae", "rent (€)")
    'mae_rent ___'
    """
    safe = re.sub(r"[^\w.\- ]", "_", target)
    return f"{metric}_{safe}"
