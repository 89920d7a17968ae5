"""Tables with named columns, to a class or to a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.contract import Contract, Feeds, InputField
from headrace.errors import DataError
from headrace.kinds.base import Categorical, Kind, Numeric, Schema, Shape, class_indices, labels_of, plain

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from headrace.config import Recipe
    from headrace.evaluation import Evaluation
    from headrace.models.registry import ModelConfig
    from headrace.models.served import ServedModel

MOST_SLICED_LEVELS = 30
COARSEST = 1e-4
"""Standard deviations; where float32 rounds a column's values by more, they are scaled in float64."""


class Tabular(Kind):
    """What both tabular kinds share: columns to inputs."""

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
            field.name: _texts(frame[field.name])
            if field.dtype == "string"
            else _numbers(frame, field.name, wide=field.dtype == "float64")
            for field in contract.inputs
        }

    def complete(self, graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
        from headrace.export import with_columns

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

    def _columns(self, train: pd.DataFrame, recipe: Recipe) -> tuple[list[Numeric], list[Categorical]]:
        import pandas as pd

        named = set(recipe.data.categorical or [])
        numeric: list[Numeric] = []
        categorical: list[Categorical] = []
        for name in features(train, recipe):
            values = train[name]
            if values.isna().all():
                raise DataError(
                    "no training row has a value here",
                    where=f"column {name}",
                    mend="leave the column out (data.columns), or bring data that fills it",
                )
            if name in named or not (pd.api.types.is_numeric_dtype(values) or _are_booleans(values)):
                levels = sorted(set(_texts(values.dropna()).tolist()))
                categorical.append(Categorical(name=name, levels=levels, nullable=bool(values.isna().any())))
            else:
                numeric.append(numeric_column(train, name))
        if not numeric and not categorical:
            raise DataError(
                "no column is left to predict from", where="data.columns", mend="name feature columns beside the target"
            )
        return numeric, categorical

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
        return {**numbers, **{c.name: str(_texts(row[c.name])[0]) for c in schema.categorical}}

    def _slices(self, frame: pd.DataFrame, schema: Schema) -> dict[str, NDArray[Any]]:
        """Values of the categories that are few enough to look at one by one."""
        return {c.name: _texts(frame[c.name]) for c in schema.categorical if len(c.levels) <= MOST_SLICED_LEVELS}


class TabularClassification(Tabular):
    """One label a row."""

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        labels = labels_of(train, recipe)
        numeric, categorical = self._columns(train, recipe)
        return Schema(shape=_shape(numeric, categorical, len(labels)), numeric=numeric, categorical=categorical, labels=labels)

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.registry import build
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
        from headrace.evaluation import score_classification

        assert schema.labels is not None
        labels = [str(label) for label in schema.labels]
        return score_classification(class_indices(frame, schema, recipe), outputs, labels, self._slices(frame, schema))


class TabularRegression(Tabular):
    """One value a row, with an interval beside it where `model.interval` asks for one."""

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        numeric, categorical = self._columns(train, recipe)
        target = finite(train, recipe.data.target)
        if missing := int(np.isnan(target).sum()):
            raise DataError(
                f"{missing} of {len(target)} training rows have no value",
                where=f"column {recipe.data.target}",
                mend=f"add {recipe.data.target} to data.drop_missing",
            )
        mean, std = float(target.mean()), float(target.std())
        if not _varies(mean, std):
            raise DataError(
                f"every training row has the same value, {target[0]:g}",
                where=f"column {recipe.data.target}",
                mend="bring data in which the target varies, or name another column as data.target",
            )
        return Schema(
            shape=_shape(numeric, categorical, 1), numeric=numeric, categorical=categorical, target_mean=mean, target_std=std
        )

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return _numbers(frame, recipe.data.target)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.interval import IntervalRegressor
        from headrace.models.registry import build
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
        from headrace.evaluation import score_regression

        y_true, slices = self.targets(frame, schema, recipe), self._slices(frame, schema)
        return score_regression(y_true, outputs, slices, interval_of(recipe.model))

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        from headrace.evaluation import interval_scores

        return interval_scores(metric, y_true, outputs)


def interval_of(config: ModelConfig) -> float | None:
    """The share of true values that intervals are to hold; a network of one's own may have the setting too."""
    level: float | None = getattr(config, "interval", None)
    return level


def features(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Columns to predict from: all but the target, and but those that divide rows.

    By time, rows to predict lie after all training rows, where no network has learned anything.
    """
    return recipe.data.features(map(str, frame.columns))


def numeric_column(frame: pd.DataFrame, name: str) -> Numeric:
    """What is learned of a column of numbers, at least one of which is there.

    Raises:
        DataError: as `finite`.
    """
    numbers = finite(frame, name)
    centre = numbers[np.isfinite(numbers)][0]
    # Around a value of the column's own: sums of large numbers would lose the digits in which they differ.
    mean, std = float(centre + np.nanmean(numbers - centre)), float(np.nanstd(numbers - centre))
    varies = std > 8 * np.finfo(np.float64).eps * abs(mean) and std > np.finfo(np.float32).tiny
    return Numeric(
        name=name,
        mean=mean,
        std=std if varies else 1.0,  # a constant column says nothing; dividing by 1 keeps it at zero instead of NaN
        nullable=bool(np.isnan(numbers).any()),
        boolean=_are_booleans(frame[name]),
        wide=bool(varies and np.finfo(np.float32).eps * np.nanmax(np.abs(numbers)) > COARSEST * std),
    )


def _are_booleans(values: pd.Series[Any]) -> bool:
    """True and false, perhaps with gaps."""
    import pandas as pd

    return pd.api.types.infer_dtype(values, skipna=True) == "boolean"


def _sampled(column: Numeric, value: float) -> float | bool | None:
    """A number as a client would send it; the mean, or null, where there is none."""
    if value != value:
        if column.nullable:
            return None
        value = round(column.mean) if column.boolean else column.mean
    return bool(value) if column.boolean else value


def _shape(numeric: list[Numeric], categorical: list[Categorical], outputs: int) -> Shape:
    return Shape(numeric=len(numeric), cardinalities=tuple(len(c.levels) + 1 for c in categorical), outputs=outputs)


def _numbers(frame: pd.DataFrame, name: str, wide: bool = False) -> NDArray[Any]:
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float64 if wide else np.float32)


def finite(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Numbers of a column, NaN for missing.

    Raises:
        DataError: a value that is no number, infinite, or beyond float32, in which the network computes.
    """
    try:
        numbers: NDArray[np.float64] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise DataError(
            f"holds {frame[name].dropna().iloc[0]!r}, which is no number",
            where=f"column {name}",
            mend="name another column, or a task that predicts classes",
        ) from None
    if (wrong := np.abs(numbers) > np.finfo(np.float32).max).any():
        raise DataError(
            f"{int(wrong.sum())} training rows are infinite or too large, such as {numbers[wrong][0]:g}",
            where=f"column {name}",
            mend=f"expect values of {name} to be between bounds, or leave the column out",
        )
    return numbers


def _varies(mean: float, std: float) -> bool:
    """Whether values differ by more than float32 can tell; float64's own rounding makes a constant's std not quite zero."""
    return bool(std > np.finfo(np.float32).eps * abs(mean) and std > np.finfo(np.float32).tiny)


def _texts(values: pd.Series[Any]) -> NDArray[Any]:
    """Categories as text, each by itself (1.0 is `1` beside 2.5 too), and nothing as the empty text."""
    import pandas as pd

    if isinstance(values.dtype, pd.StringDtype):
        return values.fillna("").to_numpy(dtype=object)
    codes, found = pd.factorize(values)
    return np.array([*(str(plain(value)) for value in found), ""], dtype=object)[codes]


def _indices(values: pd.Series[Any], levels: list[str]) -> NDArray[np.int64]:
    """Level i becomes i + 1, anything else 0."""
    import pandas as pd

    return pd.Categorical(_texts(values), categories=levels).codes.astype(np.int64) + 1
