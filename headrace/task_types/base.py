"""The base class of task types, and how they read labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from headrace.task_types.label_sets import known_labels, labels_in, refuse_lists

if TYPE_CHECKING:
    import onnx
    import pandas as pd
    import torch

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


@dataclass(frozen=True)
class RowDecoder:
    """How the input of a row is computed from the bytes in one column."""

    column: str
    name: str
    """A column that names the row in messages."""
    decode: Callable[[Sequence[bytes], Sequence[str], int], NDArray[Any]]
    """Takes values and names of rows, and the number of threads; returns the input, rows first, as `encode` does."""
    cache: int | None
    """Largest size of all encoded rows on disk; None: half of the free disk."""


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
            DataError: the rows cannot be learned from, or validation or test rows have labels that no training row has.
        """
        schema = self.fit(splits.train, recipe)
        if schema.labels is not None and not recipe.task_type.is_multilabel and recipe.data.target in splits.test:
            counts = label_counts([splits.validation, splits.test], recipe)
            require_learned(counts, set(schema.labels), recipe)
        return schema

    def learner(self, recipe: Recipe) -> Learner | None:
        """Returns an object that learns what `fit` does, chunk by chunk, for tables larger than memory. With a learner, rows
        are also encoded and answered in chunks. None (the default) if rows depend on each other."""
        return None

    def row_decoder(self, recipe: Recipe) -> RowDecoder | None:
        """Returns how the only input of a row is computed from one column, for rows that are encoded again in each epoch
        because all of them, encoded, are too large. None (the default) if a row has other inputs."""
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

    def graph_feeds(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract) -> Feeds | None:
        """Converts rows of a table to inputs of the graph itself, for the calibration of `int8-static`: `feeds`, unless the
        service computes its inputs from a client's. None if the graph does not take rows."""
        return self.feeds(frame, contract, recipe)

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

    def comparison_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any], recipe: Recipe) -> NDArray[Any]:
        """Returns what `row_scores` does, by default; for a task type whose metrics depend on the recipe."""
        return self.row_scores(metric, y_true, outputs)

    def align(self, outputs: NDArray[Any], theirs: Contract, ours: Contract) -> NDArray[Any]:
        """Returns the answers of a model with the contract `theirs` in the order of labels or targets of `ours`, for the paired
        comparison by `row_scores`. Unchanged by default."""
        return outputs

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
        graph = self.complete(self._graph(model, example), schema)
        write_with(path, lambda beside: save_graph(graph, beside))
        return check_parity(model, path, self.parity_batches(test, schema, recipe, contract), recipe.name)

    def _graph(self, model: ServedModel, example: dict[str, torch.Tensor]) -> onnx.ModelProto:
        from headrace.models.boosted_trees import BoostedTrees
        from headrace.models.boosted_trees_export import export_trees

        if isinstance(model.network, BoostedTrees):
            return export_trees(model, example)
        return export_graph(model, example, self.dynamic)

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
            hint="add rows with this label (headrace data add), or leave its rows out (data.drop_values) and ingest again",
        )
    return np.array(found, dtype=np.int64)


def label_counts(frames: Iterable[pd.DataFrame], recipe: Recipe) -> dict[str | int, int]:
    """Returns the number of rows of each label in these tables; rows without a label are not counted."""
    counts: dict[str | int, int] = {}
    for frame in frames:
        for value, count in frame[recipe.data.target].value_counts().items():
            counts[as_label(value)] = counts.get(as_label(value), 0) + int(count)
    return counts


def require_learned(counts: Mapping[str | int, int], known: Collection[str | int], recipe: Recipe) -> None:
    """Checks before training that some training row has each label.

    Args:
        counts: rows of each label in the validation and test sets.
        known: labels of the training rows.

    Raises:
        DataError: labels are in no training row; the message names all of them with their rows.
    """
    lost = {label: count for label, count in counts.items() if label not in known}
    if not lost:
        return
    named = ", ".join(f"{label!r} ({count} row{'' if count == 1 else 's'})" for label, count in lost.items())
    listed = ", ".join(map(str, lost))
    raise DataError(
        f"{len(lost)} labels are in no training row, so no model could learn them: {named}",
        where=f"column {recipe.data.target}",
        hint=f"leave their rows out: `drop_values: {{{recipe.data.target}: [{listed}]}}` under data, "
        f"then headrace run {recipe.name}; or merge rare labels in the file, or add rows with them",
    )


def labels_of(train: pd.DataFrame, recipe: Recipe) -> list[str | int]:
    """Returns the distinct labels of the training rows, sorted.

    Raises:
        DataError: there are fewer than two.
    """
    return sorted_labels(distinct_labels(train, recipe), recipe)


def distinct_labels(train: pd.DataFrame, recipe: Recipe) -> set[str | int]:
    """Returns the distinct labels of these rows."""
    if recipe.task_type.is_multilabel:
        return labels_in(train, recipe)
    found = {as_label(value) for value in train[recipe.data.target].unique()}
    refuse_lists(found, recipe)
    return found


def sorted_labels(found: set[str | int], recipe: Recipe) -> list[str | int]:
    """Returns labels in the order of their indices.

    Raises:
        DataError: there are fewer than two.
    """
    labels = sorted(found, key=lambda v: (isinstance(v, str), v))
    if recipe.task_type.is_multilabel:
        return known_labels(labels, recipe)
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
