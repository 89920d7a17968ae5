"""The stage `evaluate`: metrics, predictions and plots of the exported graph on the test rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.console import bar
from headrace.evaluation.metrics import Evaluation, before_scaling
from headrace.files import write_json, write_with
from headrace.models.schema import Schema
from headrace.pipeline.reference import write_profile
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.runtime.contract import Contract
from headrace.task_types.lookup import task_type_for

if TYPE_CHECKING:
    import pandas as pd


def evaluate_export(recipe: Recipe, project: Project) -> None:
    """Writes `evaluation/`: metrics.json, evaluation.json, predictions.npz, pictures, and the profile for monitoring.

    Raises:
        ExportError: the graph gives NaN or infinity.
    """
    artifacts = project.artifacts(recipe.name)
    evaluation, y_true, outputs = write_evaluation(recipe, project)
    draw(recipe, evaluation, y_true, outputs, artifacts)
    write_profile(recipe, artifacts, outputs)


def write_evaluation(recipe: Recipe, project: Project) -> tuple[Evaluation, NDArray[Any], NDArray[Any]]:
    """Writes `evaluation/` without pictures; returns the evaluation, the true answers and the graph's.

    Raises:
        ExportError: as `evaluate_export`.
    """
    artifacts = project.artifacts(recipe.name)
    out = artifacts / "evaluation"
    task_type, schema = task_type_for(recipe), Schema.read(artifacts / "prepared" / "schema.json")
    test = artifacts / "prepared" / "test.parquet"
    outputs = answers_for(test, artifacts / "export", recipe)
    frame = evaluation_columns(test, schema, recipe)
    evaluation = task_type.evaluate(frame, outputs, schema, recipe)
    if samples := task_type.samples(artifacts / "export", frame, recipe):
        evaluation = evaluation.model_copy(update={"samples": samples})
    y_true = task_type.truth(frame, schema, recipe)
    if temperature := Contract.read(artifacts / "export" / "contract.json").temperature:
        evaluation = before_scaling(evaluation, y_true, outputs, temperature)

    write_with(out / "predictions.npz", lambda beside: save_arrays(beside, y_true=y_true, outputs=outputs))
    write_json(out / "evaluation.json", evaluation.to_dict())
    write_json(out / "metrics.json", {name: rounded(value) for name, value in sorted(evaluation.metrics.items())})
    return evaluation, y_true, outputs


def answers_for(test: Path, folder: Path, recipe: Recipe) -> NDArray[Any]:
    """The answers of the graph in `folder` for the rows of the split at `test`, rows first. Tables are read and answered in
    chunks where the task type allows it."""
    import pandas as pd

    from headrace.data.chunks import open_chunks

    task_type = task_type_for(recipe)
    if task_type.learner(recipe) is None:
        return task_type.answers(folder, pd.read_parquet(test), recipe)
    chunks = open_chunks([test], recipe.data.model_copy(update={"columns": None}))
    found: list[NDArray[Any]] = []
    with bar("answering", chunks.rows) as progress:
        for frame in chunks.frames():
            found.append(task_type.answers(folder, frame, recipe))
            progress.update(int(frame.index[-1]) + 1)
    return np.concatenate(found)


def evaluation_columns(test: Path, schema: Schema, recipe: Recipe) -> pd.DataFrame:
    """The rows of the split at `test`, with the columns that the evaluation needs. They stay in memory, as the answers do."""
    import pandas as pd

    return pd.read_parquet(test, columns=task_type_for(recipe).evaluation_columns(schema, recipe))


def draw(recipe: Recipe, evaluation: Evaluation, y_true: NDArray[Any], outputs: NDArray[Any], artifacts: Path) -> None:
    """Plots of the evaluation and of the training, as PNG and as tables for `dvc plots`."""
    from headrace.evaluation.plots import draw_curves, draw_evaluation

    pictures = artifacts / "evaluation" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    draw_evaluation(evaluation, y_true, outputs, recipe.name, pictures)
    draw_curves(artifacts / "train" / "curves.csv", recipe.name, pictures)


def save_arrays(path: Path, y_true: NDArray[Any], outputs: NDArray[Any]) -> None:
    with path.open("wb") as handle:
        np.savez(handle, y_true=y_true, outputs=outputs)


def rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
