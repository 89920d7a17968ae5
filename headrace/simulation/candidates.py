"""Models of a simulation: trained in a project of its own by the functions that the stages run, and kept in a folder each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import UsageError
from headrace.evaluation.gate import Verdict
from headrace.evaluation.metrics import as_probabilities, as_values, classification_metric, regression_metric
from headrace.evaluation.retraining_policy import Errors
from headrace.files import read_cached_json, read_json, write_json
from headrace.models.schema import Schema
from headrace.pipeline.evaluate import write_evaluation
from headrace.pipeline.export import export_model
from headrace.pipeline.prepare import prepare
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.recipe.task_types import CLASSIFICATION, REGRESSION
from headrace.release import decision, journal
from headrace.task_types.lookup import task_type_for
from headrace.tracking import registry
from headrace.tracking.registry import Version
from headrace.tracking.version_identity import SPLIT
from headrace.training.run import train_model
from headrace.training.start import RECORD, WEIGHTS, start_folder

if TYPE_CHECKING:
    import pandas as pd

DONE = "model.json"
"""The file of a model's folder that is written last."""
SMALLEST = 1e-15
"""Probabilities are clipped here for the log loss."""


@dataclass(frozen=True)
class Measured:
    """How wrong a model was on some rows."""

    error: float
    """The metric if lower is better, else 1 - metric."""
    losses: Errors
    """What each row contributes to it: the absolute or squared error, 1 for a wrong class, or the log loss."""


class Candidates:
    """Trains, keeps and asks the models of one simulation."""

    def __init__(self, recipe: Recipe, scratch: Project, metric: str) -> None:
        """`scratch` is the project in which models are trained; its data grows batch by batch."""
        self.recipe, self.scratch, self.metric = recipe, scratch, metric
        self.task_type = task_type_for(recipe)

    def folder(self, model: str) -> Path:
        return self.scratch.root / "models" / model

    def train(self, model: str, data: str, start: str | None) -> None:
        """Trains a model from the scratch project's data and keeps it, unless it was kept before.

        Args:
            data: identifies the data.
            start: the model whose weights training starts with.

        Raises:
            DataError, TrainingError, ExportError: as the stages.
        """
        folder = self.folder(model)
        if (folder / DONE).exists():
            return
        recipe, project, artifacts = self.recipe, self.scratch, self.scratch.artifacts(self.recipe.name)
        self._set_start(start)
        prepare(recipe, project)
        train_model(recipe, project)
        export_model(recipe, project)
        write_evaluation(recipe, project)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(artifacts / "export", folder / "export")
        shutil.copyfile(artifacts / "prepared" / "schema.json", folder / "schema.json")
        shutil.copyfile(artifacts / "train" / "model.pt", folder / WEIGHTS)
        with np.load(artifacts / "evaluation" / "predictions.npz") as saved:
            test = self._measured(saved["y_true"], saved["outputs"])
        split = (artifacts / "split" / "split.json").read_text(encoding="utf-8")
        facts = read_json(artifacts / "train" / "summary.json")
        write_json(
            folder / DONE,
            {
                "data": data,
                "split": split,
                "rows": facts["train_rows"],
                "start": facts.get("start"),
                "start_reason": facts.get("start_reason"),
                "test": vars(test.losses),
            },
        )

    def facts(self, model: str) -> dict[str, Any]:
        """What was kept with a model: `data`, `split`, `rows`, `start`, and the losses on its `test` rows."""
        found: dict[str, Any] = read_json(self.folder(model) / DONE)
        return found

    def judge(self, candidate: str, champion: str) -> Verdict:
        """Applies the recipe's gate to the model that was trained last, on test rows that neither model was trained on.

        Raises:
            HeadraceError: there are no such rows.
        """
        path = self.folder(candidate) / f"verdict-{champion}.json"
        if (kept := read_cached_json(path)) is not None:
            return Verdict.model_validate(kept)
        verdict = decision.judge(self.recipe, self._version(candidate), self._version(champion), self.scratch)
        # The journal counts comparisons on the same test rows, for the gate's error budget.
        event: journal.Event = "released" if verdict.passed else "refused"
        journal.record(self.scratch, event, self.recipe.name, candidate, {"verdict": verdict.to_dict()})
        write_json(path, verdict.to_dict())
        return verdict

    def measure(self, model: str, frame: pd.DataFrame) -> Measured:
        """Predicts the rows of a batch with a model, and compares the answers with the truth.

        Raises:
            DataError: a row has a label that the model does not know.
        """
        folder = self.folder(model)
        y_true = self.task_type.truth(frame, Schema.read(folder / "schema.json"), self.recipe)
        return self._measured(y_true, self.task_type.answers(folder / "export", frame, self.recipe))

    def _measured(self, y_true: NDArray[Any], outputs: NDArray[Any]) -> Measured:
        lower = self.recipe.task_type.metrics[self.metric] == "lower"
        if self.metric in CLASSIFICATION:
            y, p = np.asarray(y_true), as_probabilities(outputs, len(y_true))
            value = classification_metric(self.metric)(y, p)
            if self.metric in ("auc", "log_loss"):
                losses = -np.log(np.clip(p[np.arange(len(y)), y], SMALLEST, 1.0))
            else:
                losses = (p.argmax(axis=1) != y).astype(np.float64)
        else:
            values, truth = as_values(outputs, len(y_true)), np.asarray(y_true, dtype=np.float64)
            value = regression_metric(self.metric)(truth, values)
            losses = np.abs(values - truth) if self.metric == "mae" else (values - truth) ** 2
        return Measured(value if lower else 1 - value, Errors.of(losses))

    def _version(self, model: str) -> Version:
        """A model as the gate takes it."""
        facts = self.facts(model)
        tags = {registry.PREFIX + SPLIT: facts["split"], f"{registry.PREFIX}data_md5": facts["data"]}
        return Version(self.recipe.name, model, "", self.folder(model) / "export", tags)

    def _set_start(self, start: str | None) -> None:
        """Writes what `train.start: champion` reads: in a release, the stage `custom_code` does."""
        place = start_folder(self.scratch, self.recipe.name)
        shutil.rmtree(place, ignore_errors=True)
        if start is None:
            return
        shutil.copytree(self.folder(start) / "export", place)
        shutil.copyfile(self.folder(start) / WEIGHTS, place / WEIGHTS)
        record = {"version": f"{self.recipe.name}@{start}", "identity": start, "split": self.facts(start)["split"]}
        write_json(place / RECORD, record)


def metric_of(recipe: Recipe) -> str:
    """Returns the metric by which a simulation measures models: the gate's, else the first one of the task.

    Raises:
        UsageError: the task has other metrics than those of classification and regression.
    """
    wanted = [recipe.gate.beat_champion.metric] if recipe.gate.beat_champion else []
    known = [name for name in (*wanted, *recipe.gate.require, *recipe.task_type.metrics) if name in CLASSIFICATION | REGRESSION]
    if not known or recipe.task_type.compared_by_row is not None:
        raise UsageError(
            f"a simulation measures models by metrics of classification and regression, and {recipe.task!r} has others",
            where=f"recipes/{recipe.name}.yaml: task",
            hint=f"simulate a recipe of one of the metrics {', '.join(sorted(CLASSIFICATION | REGRESSION))}",
        )
    return known[0]
