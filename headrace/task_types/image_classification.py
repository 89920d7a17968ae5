"""Classification of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from headrace.models.schema import Schema
from headrace.runtime.contract import Contract
from headrace.task_types.base import as_label, class_indices, distinct_labels, sorted_labels
from headrace.task_types.images import Images, TargetLearner

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class ImageClassification(Images):
    """Predicts one label per image."""

    def _target_learner(self, recipe: Recipe) -> TargetLearner:
        return _Labels(recipe)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.served import Classifier

        return Classifier(self._preprocess(schema, config), build(config, schema.shape))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        return self._contract(schema, recipe, sample, output="probabilities", labels=schema.labels, target=recipe.data.target)

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        return score_classification(class_indices(frame, schema, recipe), outputs, [str(as_label(v)) for v in schema.labels])


class _Labels:
    """Learns the labels of images, chunk by chunk."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._labels: set[str | int] = set()

    def add(self, train: pd.DataFrame) -> None:
        self._labels |= distinct_labels(train, self._recipe)

    def fields(self) -> dict[str, Any]:
        return {"labels": sorted_labels(self._labels, self._recipe)}
