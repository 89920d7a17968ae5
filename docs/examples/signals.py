"""A custom task type: a text like "0.1,0.9" is a signal of two samples, and the answer is its direction.

In a recipe: `task: signals:SignalClassification`. `served_signals.py` is its served side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from served_signals import decode

from headrace.models.schema import Numeric, Schema, Shape
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.input_field import InputField
from headrace.task_types.base import TaskType, class_indices, labels_of

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class SignalClassification(TaskType):
    """Predicts one label per signal."""

    metrics: ClassVar[dict[str, Any]] = {"accuracy": "higher", "macro_f1": "higher", "log_loss": "lower"}

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        labels = labels_of(train, recipe)
        samples = np.stack([decode(text) for text in train["signal"]])
        numeric = [
            Numeric(name=f"sample_{i}", mean=float(samples[:, i].mean()), std=float(samples[:, i].std()), nullable=False)
            for i in range(samples.shape[1])
        ]
        return Schema(shape=Shape(numeric=len(numeric), outputs=len(labels)), numeric=numeric, labels=labels)

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        return {"signal": np.stack([decode(text) for text in frame["signal"]])}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.served import Classifier, ScaleTable

        return Classifier(ScaleTable(schema), build(config, schema.shape))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[InputField(name="signal", dtype="string")],
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample={"signal": str(sample["signal"].iloc[0])},
            served_by="served_signals:SignalModel",
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        return {"signal": np.stack([decode(text) for text in frame["signal"]])}

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        return score_classification(class_indices(frame, schema, recipe), outputs, [str(v) for v in schema.labels or []])
