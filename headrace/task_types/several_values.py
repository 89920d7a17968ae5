"""Regression with several numeric targets, of any inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError
from headrace.models.schema import Schema
from headrace.runtime.contract import Contract
from headrace.task_types.inputs import Inputs
from headrace.task_types.numeric_targets import MEANS, STDS, NumericTargets, SeveralTargets
from headrace.task_types.tabular import NumbersOfTable

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class SeveralNumbers(Inputs):
    """Predicts several numbers per row, each in its own unit; comes before the task type of the inputs in a class's bases."""

    def _target_learner(self, recipe: Recipe) -> NumericTargets:
        return SeveralTargets(recipe)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[np.float32]:
        """Returns the value of each target, `(rows, targets)`."""
        columns = [frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in recipe.data.targets]
        return np.stack(columns, axis=1).astype(np.float32)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.several_values import SeveralRegressor

        network = build(config, schema.shape)
        return SeveralRegressor(self._preprocess(schema, config), network, schema.extra[MEANS], schema.extra[STDS])

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        targets = recipe.data.targets
        return self._contract(schema, recipe, sample, output="values", targets=targets, target=", ".join(targets))

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.several_values import score_values

        y_true, slices = self.targets(frame, schema, recipe), self._slices(frame, schema)
        return score_values(y_true, outputs, recipe.data.targets, slices)

    def comparison_scores(
        self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any], recipe: Recipe
    ) -> NDArray[np.float64]:
        from headrace.evaluation.several_values import scores_by_row

        return scores_by_row(metric, y_true, outputs, recipe.data.targets)

    def align(self, outputs: NDArray[Any], theirs: Contract, ours: Contract) -> NDArray[Any]:
        """Returns answers `(rows, targets)` in the order of our targets.

        Raises:
            ExportError: the model does not predict one of them.
        """
        known = theirs.targets or [theirs.target]
        if missing := [name for name in ours.targets or [] if name not in known]:
            raise ExportError(
                f"the champion does not predict {missing[0]!r}, so it cannot be compared",
                where=f"recipes/{ours.model}.yaml: data.target",
                hint="remove gate.beat_champion for this one release, and add it again for the next",
            )
        places = [known.index(name) for name in ours.targets or []]
        return outputs.reshape(len(outputs), -1)[:, places]


class SeveralValues(SeveralNumbers, NumbersOfTable):
    """Predicts several numbers per row of a table."""
