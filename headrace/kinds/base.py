"""What a kind of task has to say: how rows become tensors, what is learned from the training rows, how answers read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.contract import Contract, Feeds

if TYPE_CHECKING:
    import pandas as pd

    from headrace.config import Recipe
    from headrace.evaluation import Evaluation


class Shape(BaseModel):
    """What a model is built for."""

    model_config = ConfigDict(frozen=True)
    image: tuple[int, int, int] | None = None
    """Channels, height, width."""
    numeric: int = 0
    """Number of numeric columns."""
    cardinalities: tuple[int, ...] = ()
    """Entries of each categorical column's vocabulary, with 0 for unknown."""
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

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Schema:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


class Kind(Protocol):
    """One kind of task."""

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        """Learns the schema from the training rows.

        Raises:
            DataError: the rows cannot be learned from (one class only, a column of nothing).
        """
        ...

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Inputs of the network as the training loop takes them, rows first, in the order of its arguments."""
        ...

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """`(rows,)`: class indices (int64) or values (float32), in the target's own unit."""
        ...

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """Rows of a table as the served graph takes them."""
        ...

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        """The agreement with clients; `sample` is one row."""
        ...

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        """Metrics of the graph's `outputs` for the rows of `frame`."""
        ...


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
            mend="add rows with this label (headrace data add), or exclude it with an expectation in the recipe",
        )
    return np.array(found, dtype=np.int64)


def labels_of(train: pd.DataFrame, recipe: Recipe) -> list[str | int]:
    """Distinct labels of the training rows, sorted.

    Raises:
        DataError: fewer than two.
    """
    from headrace.errors import DataError

    labels = sorted({plain(value) for value in train[recipe.data.target].unique()}, key=lambda v: (isinstance(v, str), v))
    if len(labels) < 2:
        raise DataError(
            f"the training rows hold one class only: {labels}",
            where=f"column {recipe.data.target}",
            mend="bring data with at least two classes, or name another column as data.target",
        )
    return labels


def plain(value: Any) -> str | int:
    """A label as JSON has it: whole numbers as int, all else as text."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | np.integer) or (isinstance(value, float | np.floating) and float(value).is_integer()):
        return int(value)
    return str(value)
