"""Classification with any number of labels per row, of tables, texts and images.

Inputs are those of the task type with one label per row. Outputs are a probability for each label on its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.models.schema import Schema
from headrace.recipe.task_types import MULTILABEL_BY_ROW
from headrace.runtime.contract import Contract
from headrace.task_types.base import TaskType
from headrace.task_types.image_classification import ImageClassification
from headrace.task_types.label_sets import multi_hot, unknown_labels
from headrace.task_types.tabular import TabularClassification
from headrace.task_types.text_classification import TextClassification

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class Multilabel(TaskType):
    """What tasks with several labels per row have in common; comes before a classification in a class's bases."""

    is_multilabel: ClassVar[bool] = True
    compared_by_row: ClassVar[frozenset[str]] = MULTILABEL_BY_ROW

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[np.float32]:
        """Returns 1 for each label of a row and 0 for the others, `(rows, labels)`."""
        return multi_hot(frame, schema.labels or [], recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.multilabel import MultilabelClassifier

        shape = schema.shape.model_copy(update={"independent": True})
        inner = super().module(config, schema.model_copy(update={"shape": shape}))  # type: ignore[safe-super]
        return MultilabelClassifier(inner.preprocess, inner.network, shape.outputs)

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        found = super().contract(schema, recipe, sample)  # type: ignore[safe-super]
        return found.model_copy(update={"output": "labels", "target": ", ".join(recipe.data.targets)})

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """Returns the probability of each label, and whether it is given (1 or 0), `(rows, 2, labels)`: the thresholds are the
        model's own."""
        probabilities = super().answers(folder, frame, recipe)
        thresholds = Contract.read(folder / "contract.json").thresholds
        given = probabilities >= (np.full(probabilities.shape[1], 0.5) if thresholds is None else np.array(thresholds))
        return np.stack([probabilities, given.astype(probabilities.dtype)], axis=1)

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.multilabel import score_multilabel

        labels = schema.labels or []
        new, rows = unknown_labels(frame, labels, recipe)
        named = ", ".join(map(repr, new[:5])) + (", …" if len(new) > 5 else "")
        notes = [f"{rows:,} test rows have labels that no training row has ({named}), left out of all metrics"] if rows else []
        y_true = multi_hot(frame, labels, recipe)
        return score_multilabel(y_true, outputs, [str(label) for label in labels], self.slices(frame, schema), notes)

    def slices(self, frame: pd.DataFrame, schema: Schema) -> dict[str, NDArray[Any]]:
        """Returns values of each row `(rows,)` by which metrics are reported separately, by name. None by default."""
        return {}

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        from headrace.evaluation.multilabel import multilabel_row_scores

        return multilabel_row_scores(metric, y_true, outputs)

    def align(self, outputs: NDArray[Any], theirs: Contract, ours: Contract) -> NDArray[Any]:
        """Returns answers `(rows, 2, labels)` in the order of our labels. A label that the model does not know has probability
        0 and is not given."""
        found = np.zeros((len(outputs), 2, len(ours.labels or [])), dtype=outputs.dtype)
        places = {str(label): place for place, label in enumerate(theirs.labels or [])}
        for place, label in enumerate(ours.labels or []):
            if str(label) in places:
                found[:, :, place] = outputs[:, :, places[str(label)]]
        return found


class MultilabelTable(Multilabel, TabularClassification):
    """Predicts any number of labels for a row of a table."""

    def slices(self, frame: pd.DataFrame, schema: Schema) -> dict[str, NDArray[Any]]:
        return self._slices(frame, schema)


class MultilabelText(Multilabel, TextClassification):
    """Predicts any number of labels for a text."""


class MultilabelImages(Multilabel, ImageClassification):
    """Predicts any number of labels for an image."""
