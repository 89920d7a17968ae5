"""Classification and regression of tables with named columns."""

from __future__ import annotations

from abc import abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.models.onnx_export import with_columns
from headrace.models.schema import Categorical, Numeric, Schema, Time
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.input_field import InputField
from headrace.runtime.values import EPOCH, ValueRule
from headrace.task_types.base import Learner, class_indices
from headrace.task_types.inputs import Inputs
from headrace.task_types.numeric_targets import NumericTargets
from headrace.task_types.one_value import OneValue
from headrace.task_types.table_columns import ClassLearner, NotesGaps, NumbersLearner, category_texts, moments_of

if TYPE_CHECKING:
    import onnx
    import pandas as pd
    from torch import nn

    from headrace.data.splits import Splits
    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

MAX_SLICED_LEVELS = 30
"""Most levels of a categorical column by which metrics are reported separately."""


class Tabular(Inputs):
    """Preprocessing that classification and regression of tables share."""

    @abstractmethod
    def learner(self, recipe: Recipe) -> Learner: ...

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        learner = self.learner(recipe)
        learner.add(train)
        return learner.schema()

    def learn(self, splits: Splits, recipe: Recipe) -> Schema:
        learner = self.learner(recipe)
        learner.add(splits.train)
        if isinstance(learner, NotesGaps):
            for rows in (splits.validation, splits.test):
                learner.note_gaps(rows)
        return learner.schema()

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns `numeric` `(rows, columns)`, with NaN for missing, float64 if a column needs it and float32 otherwise,
        `times` `(rows, columns)` float64, in seconds since 1970, and `categorical` `(rows, columns)` int64; each only if the
        table has such columns."""
        wide = any(column.wide for column in schema.numeric)
        numeric = [_numbers(frame, column.name, wide) for column in schema.numeric]
        categorical = [_indices(frame[column.name], column.levels) for column in schema.categorical]
        times = [moments_of(frame, column.name) for column in schema.times]
        matrices: dict[str, list[NDArray[Any]]] = {"numeric": numeric, "times": [*times], "categorical": [*categorical]}
        return {name: np.stack(columns, axis=1) for name, columns in matrices.items() if columns}

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        return {field.name: _feed(frame, field) for field in contract.inputs}

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
        for time in schema.times:
            moments = np.where(
                rng.random(rows) < 0.5, rng.uniform(time.low, time.high + 1.0, rows), rng.uniform(-3e9, 6e9, rows)
            )
            gaps = rng.random(rows) < (0.1 if time.nullable else 0.0)
            columns[time.name] = np.where(gaps, np.datetime64("NaT"), (moments * 1e6).astype("int64").astype("datetime64[us]"))
        for category in schema.categorical:
            columns[category.name] = rng.choice([*category.levels, "", "never seen before"], rows)
        return pd.DataFrame(columns)

    def evaluation_columns(self, schema: Schema, recipe: Recipe) -> list[str]:
        return [*(column.name for column in _sliced(schema)), *recipe.data.targets]

    def _preprocess(self, schema: Schema, config: ModelConfig) -> nn.Module:
        from headrace.models.served import ScaleTable
        from headrace.models.tree_features import TreeFeatures
        from headrace.recipe.models import BoostedTreesConfig

        return TreeFeatures(schema) if isinstance(config, BoostedTreesConfig) else ScaleTable(schema)

    def _inputs(self, schema: Schema, recipe: Recipe) -> list[InputField]:
        """Returns the fields of the contract, with the rules by which the recipe reads their texts."""
        data = recipe.data
        common: dict[str, Any] = {"missing": data.missing or [], "trim": data.trim}
        numbers = [
            InputField(
                name=c.name,
                dtype="float64" if c.wide else "float32",
                nullable=c.nullable,
                boolean=c.boolean,
                lowest=None if c.boolean else c.low,
                highest=None if c.boolean else c.high,
                rule=data.parse.get(c.name, ValueRule(type="boolean") if c.boolean else None),
                **common,
            )
            for c in schema.numeric
        ]
        times = [
            InputField(name=c.name, dtype="float64", nullable=c.nullable, rule=data.times[c.name].rule, lowest=c.low, **common)
            for c in schema.times
        ]
        texts = [
            InputField(name=c.name, dtype="string", levels=c.levels, nullable=c.nullable, **common) for c in schema.categorical
        ]
        return [*numbers, *times, *texts]

    def _sample(self, schema: Schema, row: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
        """Returns the row as a client would send it; a missing number that the contract requires is replaced by the mean, and
        what the contract refuses as unknown by the nearest known value."""
        if recipe.serve.unknown == "refuse":
            row = _known(row, schema)
        numbers = {c.name: _sampled(c, float(_numbers(row, c.name, c.wide)[0])) for c in schema.numeric}
        times = {c.name: _sampled_time(c, row, recipe.data.times[c.name].format) for c in schema.times}
        return {**numbers, **times, **{c.name: str(category_texts(row[c.name])[0]) for c in schema.categorical}}

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
        from headrace.models.served import Classifier

        return Classifier(self._preprocess(schema, config), build(config, schema.shape))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        return self._contract(schema, recipe, sample, output="probabilities", labels=schema.labels, target=recipe.data.target)

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        labels = [str(label) for label in schema.labels]
        return score_classification(class_indices(frame, schema, recipe), outputs, labels, self._slices(frame, schema))


class NumbersOfTable(Tabular):
    """Learns a table with numeric targets; the class before it in a class's bases says which."""

    @abstractmethod
    def _target_learner(self, recipe: Recipe) -> NumericTargets: ...

    def learner(self, recipe: Recipe) -> Learner:
        return NumbersLearner(recipe, self._target_learner(recipe))


class TabularRegression(OneValue, NumbersOfTable):
    """Predicts one value per row, with an interval or quantiles if `model.interval` or `model.quantiles` is set."""


def _sliced(schema: Schema) -> list[Categorical]:
    return [column for column in schema.categorical if len(column.levels) <= MAX_SLICED_LEVELS]


def _sampled(column: Numeric, value: float) -> float | bool | None:
    """Returns a number as a client would send it; for a missing one, null or the mean."""
    if value != value:
        if column.nullable:
            return None
        value = round(column.mean) if column.boolean else column.mean
    return bool(value) if column.boolean else value


def _known(row: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Returns the row with numbers in the range of training, and known categories."""
    row = row.copy()
    for c in schema.numeric:
        if not c.boolean and c.low is not None and c.high is not None:
            row[c.name] = row[c.name].astype("float64").clip(c.low, c.high)
    for t in schema.times:
        first = (EPOCH + timedelta(seconds=t.low)).replace(tzinfo=None)
        row[t.name] = row[t.name].where(row[t.name].isna() | (row[t.name] >= first), first)
    for k in schema.categorical:
        if category_texts(row[k.name])[0] not in [*k.levels, *([""] if k.nullable else [])]:
            row[k.name] = k.levels[0]
    return row


def _sampled_time(column: Time, row: pd.DataFrame, format: str | None) -> str | None:
    """Returns a time as a client would send it; for a missing one, null or the last one of the training rows."""
    seconds = float(moments_of(row, column.name)[0])
    if seconds != seconds:
        if column.nullable:
            return None
        seconds = column.high
    moment = EPOCH.replace(tzinfo=None) + timedelta(seconds=seconds)
    return moment.strftime(format) if format else moment.isoformat()


def _feed(frame: pd.DataFrame, field: InputField) -> NDArray[Any]:
    if field.dtype == "string":
        return category_texts(frame[field.name])
    return moments_of(frame, field.name) if field.is_time else _numbers(frame, field.name, wide=field.dtype == "float64")


def _numbers(frame: pd.DataFrame, name: str, wide: bool = False) -> NDArray[Any]:
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float64 if wide else np.float32)


def _indices(values: pd.Series[Any], levels: list[str]) -> NDArray[np.int64]:
    """Converts level i to i + 1, anything else to 0."""
    import pandas as pd

    return pd.Categorical(category_texts(values), categories=levels).codes.astype(np.int64) + 1
