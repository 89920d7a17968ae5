"""Tables with named columns, to a class or to a value."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.runtime.contract import Contract, Feeds, InputField
from headrace.task_types.base import Categorical, Learner, Numeric, Schema, TaskType, class_indices
from headrace.task_types.table_columns import ClassLearner, ValueLearner, texts_of

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

MOST_SLICED_LEVELS = 30


class Tabular(TaskType):
    """What both tabular kinds share: columns to inputs."""

    @abstractmethod
    def learner(self, recipe: Recipe) -> Learner: ...

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        learner = self.learner(recipe)
        learner.add(train)
        return learner.schema()

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """`numeric` `(rows, columns)` with NaN for missing, float64 where a column needs it and else float32; `categorical`
        `(rows, columns)` int64; those there are."""
        wide = any(column.wide for column in schema.numeric)
        numeric = [_numbers(frame, column.name, wide) for column in schema.numeric]
        categorical = [_indices(frame[column.name], column.levels) for column in schema.categorical]
        matrices: dict[str, list[NDArray[Any]]] = {"numeric": [*numeric], "categorical": [*categorical]}
        return {name: np.stack(columns, axis=1) for name, columns in matrices.items() if columns}

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        return {
            field.name: texts_of(frame[field.name])
            if field.dtype == "string"
            else _numbers(frame, field.name, wide=field.dtype == "float64")
            for field in contract.inputs
        }

    def complete(self, graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
        from headrace.models.onnx_export import with_columns

        return with_columns(graph, schema)

    def fresh(self, schema: Schema, recipe: Recipe, rows: int, rng: np.random.Generator) -> pd.DataFrame:
        """Numbers around the training rows' and far beyond them, gaps where they are allowed, levels known and unknown."""
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

    def judged(self, schema: Schema, recipe: Recipe) -> list[str]:
        return [*(column.name for column in _sliced(schema)), recipe.data.target]

    def _inputs(self, schema: Schema) -> list[InputField]:
        numbers = [
            InputField(name=c.name, dtype="float64" if c.wide else "float32", nullable=c.nullable, boolean=c.boolean)
            for c in schema.numeric
        ]
        texts = [InputField(name=c.name, dtype="string", levels=c.levels, nullable=c.nullable) for c in schema.categorical]
        return [*numbers, *texts]

    def _sample(self, schema: Schema, row: pd.DataFrame) -> dict[str, Any]:
        """The row as a client would send it; where it lacks a number that the contract asks for, the mean stands."""
        numbers = {c.name: _sampled(c, float(_numbers(row, c.name, c.wide)[0])) for c in schema.numeric}
        return {**numbers, **{c.name: str(texts_of(row[c.name])[0]) for c in schema.categorical}}

    def _slices(self, frame: pd.DataFrame, schema: Schema) -> dict[str, NDArray[Any]]:
        """Values of the categories that are few enough to look at one by one."""
        return {c.name: texts_of(frame[c.name]) for c in _sliced(schema)}


class TabularClassification(Tabular):
    """One label a row."""

    def learner(self, recipe: Recipe) -> Learner:
        return ClassLearner(recipe)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.served import Classifier, ScaleTable
        from headrace.recipe.models import build

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
    """One value a row, with an interval beside it where `model.interval` asks for one."""

    def learner(self, recipe: Recipe) -> Learner:
        return ValueLearner(recipe)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return _numbers(frame, recipe.data.target)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.interval import IntervalRegressor
        from headrace.models.served import Regressor, ScaleTable
        from headrace.recipe.models import build

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
    return [column for column in schema.categorical if len(column.levels) <= MOST_SLICED_LEVELS]


def interval_of(config: ModelConfig) -> float | None:
    """The share of true values that intervals are to hold; a network of one's own may have the setting too."""
    level: float | None = getattr(config, "interval", None)
    return level


def _sampled(column: Numeric, value: float) -> float | bool | None:
    """A number as a client would send it; the mean, or null, where there is none."""
    if value != value:
        if column.nullable:
            return None
        value = round(column.mean) if column.boolean else column.mean
    return bool(value) if column.boolean else value


def _numbers(frame: pd.DataFrame, name: str, wide: bool = False) -> NDArray[Any]:
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float64 if wide else np.float32)


def _indices(values: pd.Series[Any], levels: list[str]) -> NDArray[np.int64]:
    """Level i becomes i + 1, anything else 0."""
    import pandas as pd

    return pd.Categorical(texts_of(values), categories=levels).codes.astype(np.int64) + 1
