"""Classification of texts, with a vocabulary learned from the training rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import RecipeError, near_miss
from headrace.models.onnx_inference import open_graph
from headrace.models.parity import PARITY_ROWS
from headrace.models.schema import Schema, Shape
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import PAD, SPECIAL, Encoder, padded, run_by_length
from headrace.task_types.base import TaskType, as_label, class_indices, labels_of
from headrace.task_types.table_columns import reading_rules

if TYPE_CHECKING:
    import pandas as pd

    from headrace.data.splits import Splits
    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

LONGEST = 100_000
"""Maximum length in characters of a text in a request: about thirty pages."""
SHORTEST = 2
"""Minimum number of columns of encoded rows: torch exports an axis of size one as fixed."""


class TextClassification(TaskType):
    """Predicts one label per text. The exported graph takes `tokens`; the service makes them from the client's `text`."""

    dynamic: ClassVar[dict[str, dict[int, str]]] = {"tokens": {1: "length"}}

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        from headrace.task_types.vocabulary import learn_vocabulary

        config = recipe.data.text
        assert config is not None
        labels, texts = labels_of(train, recipe), texts_or_empty(train, recipe)
        tokenizer = None if recipe.base is not None else learn_vocabulary(texts, config)
        vocabulary = 0 if tokenizer is None else Encoder(tokenizer).vocabulary  # a base has its own, which `prepare` adds
        return Schema(
            shape=Shape(vocabulary=vocabulary, length=max(SHORTEST, config.length), outputs=len(labels)),
            labels=labels,
            tokenizer=tokenizer,
            extra={"nullable": bool(train[config.column].isna().any()), **reading_rules(recipe)},
        )

    def learn(self, splits: Splits, recipe: Recipe) -> Schema:
        """Learns from rows of any split whether texts may be missing, and all else from the training rows."""
        schema, column = super().learn(splits, recipe), text_column(recipe)
        gaps = any(column in rows and bool(rows[column].isna().any()) for rows in (splits.validation, splits.test))
        return schema.model_copy(update={"extra": {**schema.extra, "nullable": schema.extra["nullable"] or gaps}})

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns `tokens` `(rows, longest)` int64, padded."""
        assert schema.tokenizer is not None and recipe.data.text is not None
        tokens = Encoder(schema.tokenizer).encode(texts_or_empty(frame, recipe), recipe.data.text.length)
        missing = max(0, SHORTEST - tokens.shape[1])
        return {"tokens": np.pad(tokens, ((0, 0), (0, missing)), constant_values=PAD)}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.sequences import Trim
        from headrace.models.served import Classifier

        return Classifier(Trim(), build(config, schema.shape))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        assert recipe.data.text is not None
        text = InputField(
            name="text",
            column=text_column(recipe),
            dtype="string",
            nullable=bool(schema.extra["nullable"]),
            longest=LONGEST,
            tokens=recipe.data.text.length,
            missing=recipe.data.missing or [],
            trim=recipe.data.trim,
        )
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[text],
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample={"text": texts_or_empty(sample, recipe)[0][:LONGEST]},
            served_by="bentos.models.text:TextModel",
            threads=recipe.serve.threads,
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """Returns `text` `(rows,)`, as in the contract; `tokens_of` converts it to the graph's inputs."""
        return {"text": np.array(texts_or_empty(frame, recipe), dtype=object)}

    def graph_feeds(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract) -> Feeds:
        return self.encode(frame, schema, recipe)

    def example(self, contract: Contract, folder: Path) -> Feeds:
        return {"tokens": padded(tokens_of([contract.sample["text"]], contract, folder))}

    def parity_batches(
        self, test: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract
    ) -> Iterator[tuple[Feeds, Feeds]]:
        batches = [self.encode(test.iloc[:rows], schema, recipe) for rows in PARITY_ROWS]
        batches += [{"tokens": tokens} for tokens in edge_case_tokens(schema)]
        return ((inputs, inputs) for inputs in batches)

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        contract = Contract.read(folder / "contract.json")
        session = open_graph(folder / "model.onnx")
        rows = tokens_of(texts_or_empty(frame, recipe), contract, folder)
        return run_by_length(rows, lambda tokens: session.run(None, {"tokens": tokens})[0])

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None and schema.tokenizer is not None
        rows = Encoder(schema.tokenizer).truncate(texts_or_empty(frame, recipe), LONGEST)
        return score_classification(
            class_indices(frame, schema, recipe),
            outputs,
            [str(label) for label in schema.labels],
            slices={"tokens": np.array([len(row) for row in rows])},
        )


def text_column(recipe: Recipe) -> str | None:
    """Returns the column of the texts where the field `text` of the contract has another name."""
    assert recipe.data.text is not None
    return recipe.data.text.column if recipe.data.text.column != "text" else None


def texts_or_empty(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Returns the text of each row; empty for missing values.

    Raises:
        RecipeError: the table has no such column.
    """
    assert recipe.data.text is not None
    column = recipe.data.text.column
    if column not in frame:
        raise RecipeError(
            f"data.text.column: no column {column!r}; {near_miss(column, map(str, frame.columns))}",
            where=f"recipes/{recipe.name}.yaml",
            hint="set it to the column that contains the texts",
        )
    values = frame[column]
    return ["" if missing else str(as_label(value)) for value, missing in zip(values, values.isna(), strict=True)]


def tokens_of(texts: list[str], contract: Contract, folder: Path) -> list[list[int]]:
    """Returns the token ids of each text, by the tokenizer in `folder`, truncated to the contract's limit."""
    (field,) = contract.inputs
    assert field.tokens is not None
    return Encoder((folder / "tokenizer.json").read_text(encoding="utf-8")).truncate(texts, field.tokens)


def edge_case_tokens(schema: Schema) -> list[NDArray[np.int64]]:
    """Returns batches of random tokens for the parity check: of 1 and 33 rows, the shortest and the longest texts, only
    padding, and every length in one batch."""
    rng = np.random.default_rng(0)
    longest, vocabulary = schema.shape.length, schema.shape.vocabulary
    shapes = [(1, 1), (1, longest), (33, 1), (33, longest)]
    batches = [rng.integers(len(SPECIAL), vocabulary, shape) for shape in shapes]
    for i, row in enumerate(batches[-1]):
        row[i * longest // 32 :] = PAD  # the first is empty, the last is full
    return batches
