"""The exported graph on the test rows: what the `evaluate` stage does, and the gate that follows it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.config import Recipe
from headrace.contract import Contract
from headrace.errors import HeadraceError
from headrace.evaluation import Evaluation, before_scaling
from headrace.files import read_json, write_json, write_with
from headrace.gate import Comparison, Verdict, align_classes, compare, compare_rows, judge
from headrace.kinds.base import Schema
from headrace.kinds.registry import CLASSIFICATION, REGRESSION, kind_of
from headrace.project import Project
from headrace.registry import Version, content_hash


def evaluate_export(recipe: Recipe, project: Project) -> None:
    """Writes `evaluation/`: metrics.json, evaluation.json, predictions.npz and pictures.

    Raises:
        ExportError: the graph gives NaN or infinity.
    """
    import pandas as pd

    artifacts = project.artifacts(recipe.name)
    out = artifacts / "evaluation"
    kind, schema = kind_of(recipe.task), Schema.read(artifacts / "prepared" / "schema.json")
    test = pd.read_parquet(artifacts / "prepared" / "test.parquet")
    outputs = kind.answers(artifacts / "export", test, recipe)
    evaluation = kind.evaluate(test, outputs, schema, recipe)
    if samples := kind.samples(artifacts / "export", test, recipe):
        evaluation = evaluation.model_copy(update={"samples": samples})
    y_true = kind.truth(test, schema, recipe)
    if temperature := Contract.read(artifacts / "export" / "contract.json").temperature:
        evaluation = before_scaling(evaluation, y_true, outputs, temperature)

    write_with(out / "predictions.npz", lambda beside: save_arrays(beside, y_true=y_true, outputs=outputs))
    write_json(out / "evaluation.json", evaluation.to_dict())
    write_json(out / "metrics.json", {name: rounded(value) for name, value in sorted(evaluation.metrics.items())})
    draw(recipe, evaluation, y_true, outputs, artifacts)


def decide(recipe: Recipe, project: Project, champion: Version | None) -> Verdict:
    """The gate: thresholds, then the paired comparison with the champion on the same test rows.

    Raises:
        HeadraceError: the champion takes other inputs than this recipe's data has.
    """
    import pandas as pd

    artifacts = project.artifacts(recipe.name)
    metrics: dict[str, float] = read_json(artifacts / "evaluation" / "metrics.json")
    same = champion is not None and content_hash(champion.folder) == content_hash(artifacts / "export")
    comparison: Comparison | None = None
    if champion is not None and not same and recipe.gate.beat_champion is not None:
        test = pd.read_parquet(artifacts / "prepared" / "test.parquet")
        comparison = _compare(recipe, artifacts, champion, test)
    return judge(recipe.gate, recipe.kind.metrics, metrics, comparison, same)


def _compare(recipe: Recipe, artifacts: Path, champion: Version, test: Any) -> Comparison:
    beat, kind = recipe.gate.beat_champion, kind_of(recipe.task)
    assert beat is not None
    with np.load(artifacts / "evaluation" / "predictions.npz") as saved:
        y_true, candidate = saved["y_true"], saved["outputs"]
    try:
        theirs = kind.answers(champion.folder, test, recipe)
    except Exception as error:  # ONNX Runtime has errors of its own for another type or shape, all plain exceptions
        raise HeadraceError(
            f"the champion {champion.name} cannot answer for these rows ({error}): its columns differ",
            where=f"recipes/{recipe.name}.yaml",
            mend="remove gate.beat_champion for this one release, or give the recipe another name",
        ) from error
    metric, better, seed = beat.metric, recipe.kind.metrics[beat.metric], recipe.data.split.seed
    if metric not in CLASSIFICATION | REGRESSION:
        ours, theirs = (kind.row_scores(metric, y_true, outputs) for outputs in (candidate, theirs))
        return compare_rows(metric, better, ours, theirs, beat, seed)
    labels, known = (Contract.read(folder / "contract.json").labels for folder in (artifacts / "export", champion.folder))
    if labels is not None and known is not None:
        theirs = align_classes(theirs, known, labels)
    return compare(metric, better, y_true, candidate, theirs, beat, seed)


def draw(recipe: Recipe, evaluation: Evaluation, y_true: NDArray[Any], outputs: NDArray[Any], artifacts: Path) -> None:
    """Pictures of the evaluation and of the training, as PNG and as the tables that DVC plots."""
    from headrace.plots import draw_curves, draw_evaluation

    pictures = artifacts / "evaluation" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    draw_evaluation(evaluation, y_true, outputs, recipe.name, pictures)
    draw_curves(artifacts / "train" / "curves.csv", recipe.name, pictures)


def save_arrays(path: Path, y_true: NDArray[Any], outputs: NDArray[Any]) -> None:
    with path.open("wb") as handle:
        np.savez(handle, y_true=y_true, outputs=outputs)


def rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
