"""Regression with one numeric target, of any inputs: with an interval or quantiles, if the model has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.models.schema import Schema
from headrace.runtime.contract import Contract
from headrace.task_types.inputs import Inputs
from headrace.task_types.numeric_targets import NumericTargets, OneTarget, transformed_target

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class OneValue(Inputs):
    """Predicts one value per row; comes before the task type of the inputs in a class's bases."""

    def _target_learner(self, recipe: Recipe) -> NumericTargets:
        return OneTarget(recipe)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """Returns the value of each row, `(rows,)`; raises `DataError` as `transformed_target` does."""
        if recipe.data.target_transform is not None:
            transformed_target(frame, recipe)
        return frame[recipe.data.target].to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.interval import IntervalRegressor
        from headrace.models.quantiles import QuantileRegressor
        from headrace.models.served import Regressor

        scale, mean, std = self._preprocess(schema, config), schema.target_mean, schema.target_std
        level, quantiles = interval_of(config), quantiles_of(config)
        if quantiles is not None:
            network = build(config, schema.shape.model_copy(update={"outputs": len(quantiles)}))
            return QuantileRegressor(scale, network, mean, std, quantiles, schema.target_transform)
        if level is None:
            return Regressor(scale, build(config, schema.shape), mean, std, schema.target_transform)
        network = build(config, schema.shape.model_copy(update={"outputs": 3}))
        return IntervalRegressor(scale, network, mean, std, level, schema.target_transform)

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        return self._contract(
            schema,
            recipe,
            sample,
            output="value",
            interval=interval_of(recipe.model),
            quantiles=quantiles_of(recipe.model),
            target=recipe.data.target,
        )

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_regression

        y_true, slices = self.targets(frame, schema, recipe), self._slices(frame, schema)
        quantiles = quantiles_of(recipe.model)
        level = interval_of(recipe.model) if quantiles is None else quantiles[-1] - quantiles[0]
        return score_regression(y_true, outputs, slices, level)

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        from headrace.evaluation.metrics import interval_scores

        return interval_scores(metric, y_true, outputs)


def interval_of(config: ModelConfig) -> float | None:
    """Returns the share of true values that intervals should contain; a custom network may have the setting too."""
    level: float | None = getattr(config, "interval", None)
    return level


def quantiles_of(config: ModelConfig) -> list[float] | None:
    """Returns the quantiles that are predicted beside the value; a custom network may have the setting too."""
    found: list[float] | None = getattr(config, "quantiles", None)
    return found
