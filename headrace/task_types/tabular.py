"""Classification and regression of tables with named columns."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.models.onnx_export import with_columns
from headrace.models.schema import Categorical, Numeric, Schema
from headrace.runtime.contract import Contract, Feeds, InputField
from headrace.task_types.base import Learner, TaskType, class_indices
from headrace.task_types.table_columns import ClassLearner, ValueLearner, category_texts

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

MAX_SLICED_LEVELS = 30
"""Most levels of a categorical column by which metrics are reported separately."""


class Tabular(TaskType):
    """Preprocessing that classification and regression of tables share."""

    @abstractmethod
    def learner(self, recipe: Recipe) -> Learner: ...

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        learner = self.learner(recipe)
        learner.add(train)
        return learner.schema()

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns `numeric` `(rows, columns)`, with NaN for missing, float64 if a column needs it and float32 otherwise, and
        `categorical` `(rows, columns)` int64; each only if the table has such columns."""
        wide = any(column.wide for column in schema.numeric)
        numeric = [_numbers(frame, column.name, wide) for column in schema.numeric]
        categorical = [_indices(frame[column.name], column.levels) for column in schema.categorical]
        matrices: dict[str, list[NDArray[Any]]] = {"numeric": [*numeric], "categorical": [*categorical]}
        return {name: np.stack(columns, axis=1) for name, columns in matrices.items() if columns}

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        return {
            field.name: category_texts(frame[field.name])
            if field.dtype == "string"
            else _numbers(frame, field.name, wide=field.dtype == "float64")
            for field in contract.inputs
        }

    def complete(self, graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
        return with_columns(graph, schema)

    def synthetic_rows(self, schema: Schema, recipe: Recipe, rows: int, rng: np.random.Generator) -> pd.DataFrame:
        """Returns numbers near the training rows' and far outside, missing values if allowed, and known and unknown levels."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for number in schema.numeric:
            values = number.mean + number.std * rng.choice([0.0, 1.0, 3.0, 1e4], rows) * rng.standard_normal(rows)
            values = rng.integers(0, 2, rows).astype(np.float64) if number.boolean else values
            edges = [-1e30, 1e30, *([np.nan] if number.nullable else [])]
            columns[number.name] = np.where(rng.random(rows) < 0.1, rng.choice(edges, rows), values)
        for category in schema.categorical:
            columns[category.name] = rng.choice([*category.levels, "", "never seen before"], rows)
        return pd.DataFrame(columns)

    def evaluation_columns(self, schema: Schema, recipe: Recipe) -> list[str]:
        return [*(column.name for column in _sliced(schema)), recipe.data.target]

    def _inputs(self, schema: Schema) -> list[InputField]:
        numbers = [
            InputField(name=c.name, dtype="float64" if c.wide else "float32", nullable=c.nullable, boolean=c.boolean)
            for c in schema.numeric
        ]
        texts = [InputField(name=c.name, dtype="string", levels=c.levels, nullable=c.nullable) for c in schema.categorical]
        return [*numbers, *texts]

    def _sample(self, schema: Schema, row: pd.DataFrame) -> dict[str, Any]:
        """Returns the row as a client would send it; a missing number that the contract requires is replaced by the mean."""
        numbers = {c.name: _sampled(c, float(_numbers(row, c.name, c.wide)[0])) for c in schema.numeric}
        return {**numbers, **{c.name: str(category_texts(row[c.name])[0]) for c in schema.categorical}}

    def _slices(self, frame: pd.DataFrame, schema: Schema) -> dict[str, NDArray[Any]]:
        """Returns the values of categorical columns that have few levels."""
        return {c.name: category_texts(frame[c.name]) for c in _sliced(schema)}


class TabularClassification(Tabular):
    """Predicts one label per row."""

    def learner(self, recipe: Recipe) -> Learner:
        return ClassLearner(recipe)

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
            inputs=self._inputs(schema),
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample=self._sample(schema, sample),
            threads=recipe.serve.threads,
        )

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        labels = [str(label) for label in schema.labels]
        return score_classification(class_indices(frame, schema, recipe), outputs, labels, self._slices(frame, schema))


class TabularRegression(Tabular):
    """Predicts one value per row, with an interval if `model.interval` is set."""

    def learner(self, recipe: Recipe) -> Learner:
        return ValueLearner(recipe)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return _numbers(frame, recipe.data.target)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.interval import IntervalRegressor
        from headrace.models.served import Regressor, ScaleTable

        scale, mean, std = ScaleTable(schema), schema.target_mean, schema.target_std
        level = interval_of(config)
        if level is None:
            return Regressor(scale, build(config, schema.shape), mean, std)
        network = build(config, schema.shape.model_copy(update={"outputs": 3}))
        return IntervalRegressor(scale, network, mean, std, level)

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=self._inputs(schema),
            output="value",
            interval=interval_of(recipe.model),
            target=recipe.data.target,
            sample=self._sample(schema, sample),
            threads=recipe.serve.threads,
        )

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_regression

        y_true, slices = self.targets(frame, schema, recipe), self._slices(frame, schema)
        return score_regression(y_true, outputs, slices, interval_of(recipe.model))

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        from headrace.evaluation.metrics import interval_scores

        return interval_scores(metric, y_true, outputs)


def _sliced(schema: Schema) -> list[Categorical]:
    return [column for column in schema.categorical if len(column.levels) <= MAX_SLICED_LEVELS]


def interval_of(config: ModelConfig) -> float | None:
    """Returns the share of true values that intervals should contain; a custom network may have the setting too."""
    level: float | None = getattr(config, "interval", None)
    return level


def _sampled(column: Numeric, value: float) -> float | bool | None:
    """Returns a number as a client would send it; for a missing one, null or the mean."""
    if value != value:
        if column.nullable:
            return None
        value = round(column.mean) if column.boolean else column.mean
    return bool(value) if column.boolean else value


def _numbers(frame: pd.DataFrame, name: str, wide: bool = False) -> NDArray[Any]:
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float64 if wide else np.float32)


def _indices(values: pd.Series[Any], levels: list[str]) -> NDArray[np.int64]:
    """Converts level i to i + 1, anything else to 0."""
    import pandas as pd

    return pd.Categorical(category_texts(values), categories=levels).codes.astype(np.int64) + 1
