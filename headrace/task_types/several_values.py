"""Regression of tables with several numeric targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.data.moments import Moments
from headrace.errors import DataError, ExportError
from headrace.models.schema import Schema
from headrace.runtime.contract import Contract
from headrace.task_types.base import Learner
from headrace.task_types.table_columns import TableLearner, finite, reading_rules
from headrace.task_types.tabular import Tabular

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

MEANS, STDS = "target_means", "target_stds"
"""Keys of `Schema.extra`: mean and standard deviation of each target."""


class SeveralValuesLearner(TableLearner):
    """Learns a table with several numeric targets per row."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._targets = {name: Moments() for name in recipe.data.targets}
        self._missing = dict.fromkeys(self._targets, 0)

    def add(self, train: pd.DataFrame) -> None:
        super().add(train)
        for name, moments in self._targets.items():
            values = finite(train, name)
            self._missing[name] += int(np.isnan(values).sum())
            if len(values):
                moments.add(len(values), float(values.mean()), float(values.var()))

    def schema(self) -> Schema:
        columns = self.columns()
        for name, moments in self._targets.items():
            _check(name, moments, self._missing[name])
        means = [moments.mean for moments in self._targets.values()]
        stds = [math.sqrt(moments.variance) for moments in self._targets.values()]
        return columns.schema(len(self._targets), extra={**reading_rules(self.recipe), MEANS: means, STDS: stds})


def _check(name: str, moments: Moments, missing: int) -> None:
    """
    Raises:
        DataError: training rows have no value in this target, or all the same.
    """
    if missing:
        raise DataError(
            f"{missing} of {moments.rows} training rows have no value",
            where=f"column {name}",
            hint=f"add {name} to data.drop_missing",
        )
    std = math.sqrt(moments.variance)
    if not std > max(np.finfo(np.float32).eps * abs(moments.mean), np.finfo(np.float32).tiny):
        raise DataError(
            f"every training row has the same value, {moments.mean:g}",
            where=f"column {name}",
            hint=f"use data in which {name} varies, or remove it from data.target",
        )


class SeveralValues(Tabular):
    """Predicts several numbers per row, each in its own unit."""

    def learner(self, recipe: Recipe) -> Learner:
        return SeveralValuesLearner(recipe)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[np.float32]:
        """Returns the value of each target, `(rows, targets)`."""
        columns = [frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in recipe.data.targets]
        return np.stack(columns, axis=1).astype(np.float32)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.served import ScaleTable
        from headrace.models.several_values import SeveralRegressor

        network = build(config, schema.shape)
        return SeveralRegressor(ScaleTable(schema), network, schema.extra[MEANS], schema.extra[STDS])

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=self._inputs(schema, recipe),
            output="values",
            targets=recipe.data.targets,
            target=", ".join(recipe.data.targets),
            sample=self._sample(schema, sample, recipe),
            unknown=recipe.serve.unknown,
            threads=recipe.serve.threads,
        )

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
