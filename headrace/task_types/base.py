"""The base class of task types, and how they read labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.files import write_with
from headrace.models.onnx_export import export_graph, save_graph
from headrace.models.onnx_inference import run_graph
from headrace.models.parity import PARITY_ROWS, check_parity
from headrace.models.schema import Schema
from headrace.runtime.contract import Contract, Feeds

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from headrace.data.splits import Splits
    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

PARITY_SEED = 7


class Learner(Protocol):
    """Learns a schema from training rows that arrive in chunks."""

    def add(self, train: pd.DataFrame) -> None:
        """Adds further training rows.

        Raises:
            DataError: values that cannot be learned from.
        """
        ...

    def schema(self) -> Schema:
        """Returns the schema of all rows added so far.

        Raises:
            DataError: they cannot be learned from (only one class, an empty column).
        """
        ...


class TaskType(ABC):
    """Defines a task: preprocessing, network, contract with clients, and evaluation.

    Subclasses implement the abstract methods; the others have defaults that suit a model exported as one graph.
    """

    metrics: ClassVar[dict[str, Any]] = {}
    """The metrics of a custom task type, each with `higher` or `lower`, whichever is better. Those of the built-in types are
    in `headrace.recipe.task_types`."""
    dynamic: ClassVar[dict[str, dict[int, str]]] = {}
    """Axes of the exported graph's inputs that may have any size, besides the rows: input name to axis to the axis's name."""
    reads_chunks: ClassVar[bool] = False
    """Whether tables larger than memory are read in chunks: true for every subclass that overrides `learner`."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.reads_chunks = cls.learner is not TaskType.learner

    @abstractmethod
    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        """Learns the schema from the training rows.

        Raises:
            DataError: the rows cannot be learned from (only one class, an empty column).
        """

    def learn(self, splits: Splits, recipe: Recipe) -> Schema:
        """Learns the schema from all splits, for tasks whose rows depend on each other (the nodes of a graph). The labels of
        validation and test rows must not be used. Calls `fit` by default.

        Raises:
            DataError: the rows cannot be learned from.
        """
        return self.fit(splits.train, recipe)

    def learner(self, recipe: Recipe) -> Learner | None:
        """Returns an object that learns what `fit` does, chunk by chunk, for tables larger than memory. With a learner, rows
        are also encoded and answered in chunks. None (the default) if rows depend on each other."""
        return None

    def evaluation_columns(self, schema: Schema, recipe: Recipe) -> list[str] | None:
        """Returns the columns that `evaluate`, `truth` and `samples` read. All test rows of these columns are in memory at the
        same time, so a task type with a learner should return few. None (the default) means all columns."""
        return None

    @abstractmethod
    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns the network's inputs, rows first, in the order of its arguments."""

    @abstractmethod
    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """Returns class indices (int64) or values (float32, in the target's own unit), `(rows,)`."""

    @abstractmethod
    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        """Builds the network that `config` names, together with preprocessing and output layer."""

    @abstractmethod
    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        """Returns the contract with clients: inputs, outputs and an example. `sample` is one row."""

    @abstractmethod
    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """Converts rows of a table to inputs of the served graph."""

    @abstractmethod
    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        """Computes the metrics of `outputs`, which `answers` returned for the rows of `frame`."""

    def truth(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """Returns what `answers` is compared with, rows first; stored with the predictions. The training targets by default."""
        return self.targets(frame, schema, recipe)

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        """Returns what each row contributes to `metric`, for the paired comparison of two models. Only needed for metrics
        other than those of classification and regression.

        Returns:
            `(rows,)` scores whose mean is the metric, or `(rows, 2)` amounts and weights, the quotient of whose sums it is.
        """
        raise TypeError(f"{type(self).__name__} has a metric {metric!r} but no row_scores for it")

    def samples(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> list[dict[str, str]]:
        """Returns example answers of the graph in `folder`, stored in the evaluation for people to read. None by default."""
        return []

    def synthetic_rows(self, schema: Schema, recipe: Recipe, rows: int, rng: np.random.Generator) -> pd.DataFrame | None:
        """Returns random and edge-case rows for the ONNX parity check. None (the default) checks test rows only."""
        return None

    def complete(self, graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
        """Adds nodes in front of the exported graph that turn clients' fields into its inputs. Adds nothing by default."""
        return graph

    def parity_batches(
        self, test: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract
    ) -> Iterator[tuple[Feeds, Feeds]]:
        """Yields the batches of the parity check, each as inputs of the torch model and as inputs of the graph: test rows and
        synthetic rows, by default."""
        rng = np.random.default_rng(PARITY_SEED)
        frames = [test.iloc[:rows] for rows in PARITY_ROWS]
        for rows in PARITY_ROWS:
            synthetic = self.synthetic_rows(schema, recipe, rows, rng)
            frames += [] if synthetic is None else [synthetic]
        for frame in frames:
            yield self.encode(frame, schema, recipe), self.feeds(frame, contract, recipe)

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        """Writes the served graph (`model.onnx`) into `folder`, and compares it with torch on rows of `test`.

        Further files are served if their names match `headrace.tracking.artifact.PATTERNS`.

        Returns:
            The result of the comparison: `largest_relative_difference`, `tolerance`.

        Raises:
            ExportError: the graph's answers differ from torch's.
        """
        import torch

        path = folder / "model.onnx"
        example = {name: torch.from_numpy(array) for name, array in self.encode(test.iloc[[0, -1]], schema, recipe).items()}
        graph = self.complete(export_graph(model, example, self.dynamic), schema)
        write_with(path, lambda beside: save_graph(graph, beside))
        return check_parity(model, path, self.parity_batches(test, schema, recipe, contract), recipe.name)

    def example(self, contract: Contract, folder: Path) -> Feeds:
        """Returns one row of inputs for the graph in `folder` (`model.onnx`): the input example in MLflow's registry."""
        return contract.to_feeds([contract.sample])

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """Returns the answers of the graph in `folder` for the rows of `frame`, rows first, decoded as the service does."""
        return run_graph(folder / "model.onnx", self.feeds(frame, Contract.read(folder / "contract.json"), recipe))


def class_indices(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[np.int64]:
    """Returns the class index of each row, `(rows,)`.

    Raises:
        DataError: no training row has a row's label.
    """
    assert schema.labels is not None
    index = {label: i for i, label in enumerate(schema.labels)}
    found = [index.get(as_label(value)) for value in frame[recipe.data.target]]
    if None in found:
        value = as_label(frame[recipe.data.target].iloc[found.index(None)])
        raise DataError(
            f"label {value!r} is in no training row, so no model could learn it",
            where=f"column {recipe.data.target}",
            hint="add rows with this label (headrace data add), or exclude it with an expectation in the recipe",
        )
    return np.array(found, dtype=np.int64)


def labels_of(train: pd.DataFrame, recipe: Recipe) -> list[str | int]:
    """Returns the distinct labels of the training rows, sorted.

    Raises:
        DataError: there are fewer than two.
    """
    return sorted_labels(distinct_labels(train, recipe), recipe)


def distinct_labels(train: pd.DataFrame, recipe: Recipe) -> set[str | int]:
    """Returns the distinct labels of these rows."""
    return {as_label(value) for value in train[recipe.data.target].unique()}


def sorted_labels(found: set[str | int], recipe: Recipe) -> list[str | int]:
    """Returns labels in the order of their indices.

    Raises:
        DataError: there are fewer than two.
    """
    labels = sorted(found, key=lambda v: (isinstance(v, str), v))
    if len(labels) < 2:
        raise DataError(
            f"the training rows have only one class: {labels}",
            where=f"column {recipe.data.target}",
            hint="use data with at least two classes, or set data.target to another column",
        )
    return labels


def as_label(value: Any) -> str | int:
    """Converts a label to its JSON form: whole numbers to int, everything else to text."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | np.integer) or (isinstance(value, float | np.floating) and float(value).is_integer()):
        return int(value)
    return str(value)
