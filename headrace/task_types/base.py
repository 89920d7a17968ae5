"""What a kind of task has to say: how rows become tensors, what is learned from the training rows, how answers read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.runtime.contract import Contract, Feeds

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from headrace.data.splits import Splits
    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class Shape(BaseModel):
    """What a model is built for."""

    model_config = ConfigDict(frozen=True)
    image: tuple[int, int, int] | None = None
    """Channels, height, width."""
    numeric: int = 0
    """Number of numeric columns."""
    cardinalities: tuple[int, ...] = ()
    """Entries of each categorical column's vocabulary, with 0 for unknown."""
    vocabulary: int = 0
    """Tokens of a text's vocabulary, the special ones included."""
    length: int = 0
    """Most tokens of a text."""
    answer_length: int = 0
    """Most tokens of a text that is the answer."""
    features: int = 0
    """Features of a graph's node."""
    whole: bool = False
    """Whether one answer is for a whole graph, not for a node."""
    outputs: int = 1
    """Classes, or 1 for a regression."""


class Numeric(BaseModel):
    """A numeric column, as seen in the training rows."""

    model_config = ConfigDict(frozen=True)
    name: str
    mean: float
    std: float
    nullable: bool
    """Missing values are filled with the mean."""
    boolean: bool = False
    """True and false, as 1 and 0."""
    wide: bool = False
    """Values lie so close together, and so far from zero, that float32 would lose what tells them apart."""


class Categorical(BaseModel):
    """A categorical column; level i has index i + 1, and 0 stands for anything unknown."""

    model_config = ConfigDict(frozen=True)
    name: str
    levels: list[str]
    nullable: bool


class Schema(BaseModel):
    """What preprocessing learned from the training rows, and from them alone."""

    model_config = ConfigDict(frozen=True)
    shape: Shape
    numeric: list[Numeric] = []
    categorical: list[Categorical] = []
    labels: list[str | int] | None = None
    target_mean: float = 0.0
    target_std: float = 1.0
    tokenizer: str | None = None
    """Of texts: what the library `tokenizers` writes as tokenizer.json."""
    extra: dict[str, Any] = {}
    """What a kind of one's own learned beyond these."""

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Schema:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


class Learner(Protocol):
    """Learns a schema from training rows that come piece by piece."""

    def add(self, train: pd.DataFrame) -> None:
        """Takes further training rows in.

        Raises:
            DataError: values that cannot be learned from.
        """
        ...

    def schema(self) -> Schema:
        """What all rows together say.

        Raises:
            DataError: they cannot be learned from (one class only, a column of nothing).
        """
        ...


class TaskType(ABC):
    """One kind of task. A kind with one exported graph says what stands up to `evaluate`; the rest has a default."""

    metrics: ClassVar[dict[str, Any]] = {}
    """Metric to `higher` or `lower`: of a kind of one's own; the built-in ones have theirs in the registry."""
    dynamic: ClassVar[dict[str, dict[int, str]]] = {}
    """Axes of inputs of the exported graph that may have any size, beside the rows: input to axis to its name."""

    @abstractmethod
    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        """Learns the schema from the training rows.

        Raises:
            DataError: the rows cannot be learned from (one class only, a column of nothing).
        """

    def learn(self, splits: Splits, recipe: Recipe) -> Schema:
        """As `fit`, from all that is there: for a kind whose rows belong together, such as the nodes of a graph. Labels of
        other rows than the training ones stay unseen.

        Raises:
            DataError: as `fit`.
        """
        return self.fit(splits.train, recipe)

    def learner(self, recipe: Recipe) -> Learner | None:
        """Learns what `fit` does, piece by piece: for a table larger than memory. None, the default, where a row means
        nothing without the others; rows of a kind with a learner are encoded and answered one by one."""
        return None

    def judged(self, schema: Schema, recipe: Recipe) -> list[str] | None:
        """Columns that `evaluate`, `truth` and `samples` look at, for a kind with a learner: of all test rows they are in
        memory at once. None: all columns."""
        return None

    @abstractmethod
    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Inputs of the network as the training loop takes them, rows first, in the order of its arguments."""

    @abstractmethod
    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """`(rows,)`: class indices (int64) or values (float32), in the target's own unit."""

    @abstractmethod
    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        """The network that `config` names, between this kind's preprocessing and its answer."""

    @abstractmethod
    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        """The agreement with clients; `sample` is one row."""

    @abstractmethod
    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """Rows of a table as the served graph takes them."""

    @abstractmethod
    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        """Metrics of `outputs`, as `answers` gave them for the rows of `frame`."""

    def truth(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """What `answers` is held against, rows first; kept beside it. By default what the network is trained towards."""
        return self.targets(frame, schema, recipe)

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        """What each row adds to `metric`, for the paired comparison of two models: only for a metric that is none of
        classification or regression.

        Returns:
            `(rows,)` scores whose mean is the metric, or `(rows, 2)` amounts and weights whose sums' quotient it is.
        """
        raise TypeError(f"{type(self).__name__} names the metric {metric!r} and has no row_scores for it")

    def samples(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> list[dict[str, str]]:
        """Answers of the graph in `folder` for a person to read, kept in the evaluation; none by default."""
        return []

    def fresh(self, schema: Schema, recipe: Recipe, rows: int, rng: np.random.Generator) -> pd.DataFrame | None:
        """Rows that no data holds: random ones, and the edges of whatever clients may send. The exported graph is held
        against torch on them; None, the default, leaves it at rows of the test set."""
        return None

    def complete(self, graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
        """Puts in front of the exported graph whatever turns clients' fields into its inputs."""
        return graph

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        """Writes the served graph (`model.onnx`) into `folder`, and holds it against torch on rows of `test`.

        Further files are served when their names fit `headrace.tracking.artifact.PATTERNS`.

        Returns:
            What the comparison found: `largest_relative_difference`, `tolerance`.

        Raises:
            ExportError: the graph's answers differ from torch's.
        """
        from headrace.models.onnx_export import export_one_graph

        return export_one_graph(self, model, schema, recipe, contract, test, folder)

    def example(self, contract: Contract, folder: Path) -> Feeds:
        """Feeds of the graph in `folder` (`model.onnx`), one row: the registry's input example."""
        return contract.to_feeds([contract.sample])

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """What the graph in `folder` answers for the rows of `frame`, decoded as the service decodes them; rows first."""
        from headrace.models.onnx_export import run_graph

        return run_graph(folder / "model.onnx", self.feeds(frame, Contract.read(folder / "contract.json"), recipe))


def class_indices(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[np.int64]:
    """Class index of each row, `(rows,)`.

    Raises:
        DataError: a label that no training row has.
    """
    from headrace.errors import DataError

    assert schema.labels is not None
    index = {label: i for i, label in enumerate(schema.labels)}
    found = [index.get(plain(value)) for value in frame[recipe.data.target]]
    if None in found:
        value = plain(frame[recipe.data.target].iloc[found.index(None)])
        raise DataError(
            f"label {value!r} stands in no training row, so no model could learn it",
            where=f"column {recipe.data.target}",
            hint="add rows with this label (headrace data add), or exclude it with an expectation in the recipe",
        )
    return np.array(found, dtype=np.int64)


def labels_of(train: pd.DataFrame, recipe: Recipe) -> list[str | int]:
    """Distinct labels of the training rows, sorted.

    Raises:
        DataError: fewer than two.
    """
    return sorted_labels(distinct_labels(train, recipe), recipe)


def distinct_labels(train: pd.DataFrame, recipe: Recipe) -> set[str | int]:
    """Labels of these rows."""
    return {plain(value) for value in train[recipe.data.target].unique()}


def sorted_labels(found: set[str | int], recipe: Recipe) -> list[str | int]:
    """Labels in the order of their indices.

    Raises:
        DataError: fewer than two.
    """
    from headrace.errors import DataError

    labels = sorted(found, key=lambda v: (isinstance(v, str), v))
    if len(labels) < 2:
        raise DataError(
            f"the training rows hold one class only: {labels}",
            where=f"column {recipe.data.target}",
            hint="bring data with at least two classes, or name another column as data.target",
        )
    return labels


def plain(value: Any) -> str | int:
    """A label as JSON has it: whole numbers as int, all else as text."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | np.integer) or (isinstance(value, float | np.floating) and float(value).is_integer()):
        return int(value)
    return str(value)
