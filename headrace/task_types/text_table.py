"""Tables with a text beside their other columns: one network for both.

The text is converted to tokens by the tokenizer beside the graph, as for texts alone. The graph takes one input for each
column, and for the text the token ids `(rows, length)` under the name of its column.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.models.onnx_export import rename_input
from headrace.models.onnx_inference import open_graph
from headrace.models.schema import Schema
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import PAD, Encoder, padded, run_with_text
from headrace.task_types.base import Learner
from headrace.task_types.multilabel import Multilabel
from headrace.task_types.several_values import SeveralValues
from headrace.task_types.table_columns import NotesGaps
from headrace.task_types.tabular import Tabular, TabularClassification, TabularRegression
from headrace.task_types.text_classification import LONGEST, SHORTEST, texts_or_empty

if TYPE_CHECKING:
    import onnx
    import pandas as pd
    from torch import nn

    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

TEXT = "text"
"""The key of `Schema.extra` with the column of the text and whether texts may be missing."""
TOKENS = "tokens"
"""The network's input with the token ids, the last one."""
STRANGE_TEXTS = ["", " ", "never seen before", "Ω ≈ ç √", "word " * 60]


class TextTableLearner:
    """Learns the columns as another learner does, and the vocabulary of the text."""

    def __init__(self, columns: Learner, recipe: Recipe) -> None:
        self._columns, self._recipe = columns, recipe
        self._texts: list[str] = []
        self._has_missing = False

    def add(self, train: pd.DataFrame) -> None:
        self._columns.add(train)
        self._texts += texts_or_empty(train, self._recipe)
        self._note_missing_texts(train)

    def note_gaps(self, frame: pd.DataFrame) -> None:
        """Learns from rows of any split which values may be missing."""
        if isinstance(self._columns, NotesGaps):
            self._columns.note_gaps(frame)
        self._note_missing_texts(frame)

    def _note_missing_texts(self, frame: pd.DataFrame) -> None:
        assert self._recipe.data.text is not None
        self._has_missing |= bool(frame[self._recipe.data.text.column].isna().any())

    def schema(self) -> Schema:
        from headrace.task_types.vocabulary import learn_vocabulary

        found, config = self._columns.schema(), self._recipe.data.text
        assert config is not None
        tokenizer = learn_vocabulary(self._texts, config)
        sizes = {"vocabulary": Encoder(tokenizer).vocabulary, "length": max(SHORTEST, config.length)}
        text = {"column": config.column, "nullable": self._has_missing}
        return found.model_copy(
            update={
                "shape": found.shape.model_copy(update=sizes),
                "tokenizer": tokenizer,
                "extra": {**found.extra, TEXT: text},
            }
        )


class TextTable(Tabular):
    """What tables with a text have in common; comes before a task type of tables in a class's bases."""

    dynamic: ClassVar[dict[str, dict[int, str]]] = {TOKENS: {1: "length"}}

    def learner(self, recipe: Recipe) -> Learner:
        return TextTableLearner(super().learner(recipe), recipe)  # type: ignore[safe-super]

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns the matrices of the columns, and `tokens` `(rows, length)` int64, padded to `data.text.length`."""
        assert schema.tokenizer is not None
        tokens = Encoder(schema.tokenizer).encode(texts_or_empty(frame, recipe), schema.shape.length)
        missing = schema.shape.length - tokens.shape[1]
        return {**super().encode(frame, schema, recipe), TOKENS: np.pad(tokens, ((0, 0), (0, missing)), constant_values=PAD)}

    def _preprocess(self, schema: Schema, config: ModelConfig) -> nn.Module:
        from headrace.models.text_vector import ScaleTextTable

        return ScaleTextTable(schema)

    def complete(self, graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
        found = super().complete(graph, schema) if schema.numeric or schema.times or schema.categorical else graph
        columns = {one.name for one in schema.numeric} | {one.name for one in schema.times}
        columns |= {one.name for one in schema.categorical}
        (tokens,) = [one.name for one in found.graph.input if one.name not in columns]
        rename_input(found, tokens, schema.extra[TEXT]["column"])
        return found

    def synthetic_rows(self, schema: Schema, recipe: Recipe, rows: int, rng: np.random.Generator) -> pd.DataFrame:
        frame = super().synthetic_rows(schema, recipe, rows, rng)
        return frame.assign(**{schema.extra[TEXT]["column"]: rng.choice(STRANGE_TEXTS, rows)})

    def parity_batches(
        self, test: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract
    ) -> Iterator[tuple[Feeds, Feeds]]:
        for inputs, feeds in super().parity_batches(test, schema, recipe, contract):
            yield inputs, {**feeds, schema.extra[TEXT]["column"]: _trimmed(inputs[TOKENS])}

    def graph_feeds(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract) -> Feeds:
        tokens = self.encode(frame, schema, recipe)[TOKENS]
        return {**self.feeds(frame, contract, recipe), schema.extra[TEXT]["column"]: _trimmed(tokens)}

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        found = super().contract(schema, recipe, sample)  # type: ignore[safe-super]
        return found.model_copy(update={"served_by": "bentos.models.text_table:TextTableModel"})

    def example(self, contract: Contract, folder: Path) -> Feeds:
        feeds, field = contract.to_feeds([contract.sample]), text_field(contract)
        return {**feeds, field.name: padded(_tokens(feeds, field, folder))}

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        contract = Contract.read(folder / "contract.json")
        field, feeds = text_field(contract), self.feeds(frame, contract, recipe)
        session = open_graph(folder / "model.onnx")
        return run_with_text(feeds, field.name, _tokens(feeds, field, folder), lambda part: session.run(None, part)[0])

    def _inputs(self, schema: Schema, recipe: Recipe) -> list[InputField]:
        text = schema.extra[TEXT]
        field = InputField(
            name=text["column"],
            dtype="string",
            nullable=text["nullable"],
            longest=LONGEST,
            tokens=schema.shape.length,
            missing=recipe.data.missing or [],
            trim=recipe.data.trim,
        )
        return [*super()._inputs(schema, recipe), field]

    def _sample(self, schema: Schema, row: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
        name = schema.extra[TEXT]["column"]
        value = row[name].iloc[0]
        return {**super()._sample(schema, row, recipe), name: "" if value is None or value != value else str(value)[:LONGEST]}


def text_field(contract: Contract) -> InputField:
    """Returns the field with the text."""
    return next(field for field in contract.inputs if field.tokens is not None)


def _trimmed(tokens: NDArray[Any]) -> NDArray[Any]:
    """Returns the token ids without columns of padding alone: the graph gets less padding than torch."""
    return tokens[:, : max(SHORTEST, int((tokens != PAD).sum(axis=1).max()))]


def _tokens(feeds: Feeds, field: InputField, folder: Path) -> list[list[int]]:
    """Returns the token ids of each text, by the tokenizer in `folder`."""
    assert field.tokens is not None
    encoder = Encoder((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return encoder.truncate(feeds[field.name].tolist(), field.tokens)


class TextTableClassification(TextTable, TabularClassification):
    """Predicts one label per row of a table with a text."""


class TextTableRegression(TextTable, TabularRegression):
    """Predicts one value per row of a table with a text."""


class TextTableMultilabel(Multilabel, TextTable, TabularClassification):
    """Predicts any number of labels per row of a table with a text."""

    def slices(self, frame: pd.DataFrame, schema: Schema) -> dict[str, NDArray[Any]]:
        return self._slices(frame, schema)


class TextTableSeveralValues(TextTable, SeveralValues):
    """Predicts several values per row of a table with a text."""
