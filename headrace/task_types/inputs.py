"""What task types need of their inputs, whatever they predict: the fields of a row, as the client sends them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from headrace.models.schema import Schema
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.task_types.base import TaskType

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class Inputs(TaskType):
    """A task type whose graph takes fields of a row; a subclass for what is predicted comes before it in a class's bases."""

    @abstractmethod
    def _preprocess(self, schema: Schema, config: ModelConfig) -> nn.Module:
        """Returns the module that prepares what `encode` returns for the network of `config`."""

    @abstractmethod
    def _inputs(self, schema: Schema, recipe: Recipe) -> list[InputField]:
        """Returns the fields of the contract."""

    @abstractmethod
    def _sample(self, schema: Schema, row: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
        """Returns the row as a client would send it."""

    def _slices(self, frame: pd.DataFrame, schema: Schema) -> dict[str, NDArray[Any]]:
        """Returns values of each row `(rows,)` by which metrics are reported separately, by name. None by default."""
        return {}

    def _contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame, **output: Any) -> Contract:
        """Returns the contract with these fields about the output."""
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=self._inputs(schema, recipe),
            sample=self._sample(schema, sample, recipe),
            unknown=recipe.serve.unknown,
            threads=recipe.serve.threads,
            **output,
        )
