"""Texts to classes: tokens by a vocabulary of the training rows, a network over them, one label a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import RecipeError, near_miss
from headrace.runtime.contract import Contract, Feeds, InputField
from headrace.runtime.tokenizer import PAD, SPECIAL, Encoder, answer_by_length, padded
from headrace.task_types.base import Schema, Shape, TaskType, class_indices, labels_of, plain

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

LONGEST = 100_000
"""Characters of a text that the service takes: some thirty pages."""
SHORTEST = 2
"""Columns of encoded rows at least: an axis of one would be exported as one that is always one."""


class TextClassification(TaskType):
    """One label a text. The served graph takes `tokens`; the service makes them from the client's `text`."""

    dynamic: ClassVar[dict[str, dict[int, str]]] = {"tokens": {1: "length"}}

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        from headrace.task_types.vocabulary import learn_vocabulary

        config = recipe.data.text
        assert config is not None
        labels, texts = labels_of(train, recipe), texts_of(train, recipe)
        tokenizer = learn_vocabulary(texts, config)
        return Schema(
            shape=Shape(vocabulary=Encoder(tokenizer).vocabulary, length=max(SHORTEST, config.length), outputs=len(labels)),
            labels=labels,
            tokenizer=tokenizer,
            extra={"nullable": bool(train[config.column].isna().any())},
        )

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """`tokens` `(rows, longest)` int64, filled up with padding."""
        assert schema.tokenizer is not None and recipe.data.text is not None
        tokens = Encoder(schema.tokenizer).encode(texts_of(frame, recipe), recipe.data.text.length)
        missing = max(0, SHORTEST - tokens.shape[1])
        return {"tokens": np.pad(tokens, ((0, 0), (0, missing)), constant_values=PAD)}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.sequences import Trim
        from headrace.models.served import Classifier
        from headrace.recipe.models import build

        return Classifier(Trim(), build(config, schema.shape))

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        assert recipe.data.text is not None
        text = InputField(
            name="text",
            dtype="string",
            nullable=bool(schema.extra["nullable"]),
            longest=LONGEST,
            tokens=recipe.data.text.length,
        )
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[text],
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample={"text": texts_of(sample, recipe)[0][:LONGEST]},
            served_by="bentos.models.text:TextModel",
            threads=recipe.serve.threads,
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """`text` `(rows,)`, as the contract has it; `tokens_of` makes of it what the graph takes."""
        return {"text": np.array(texts_of(frame, recipe), dtype=object)}

    def example(self, contract: Contract, folder: Path) -> Feeds:
        return {"tokens": padded(tokens_of([contract.sample["text"]], contract, folder))}

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        import torch

        from headrace.files import write_with
        from headrace.models.onnx_export import compare, export_graph, save_graph

        path = folder / "model.onnx"
        example = {name: torch.from_numpy(array) for name, array in self.encode(test.iloc[[0, -1]], schema, recipe).items()}
        graph = export_graph(model, example, self.dynamic)
        write_with(path, lambda beside: save_graph(graph, beside))
        batches = [self.encode(test.iloc[:rows], schema, recipe) for rows in (1, 33)]
        batches += [{"tokens": tokens} for tokens in edges(schema)]
        return compare(model, path, ((batch, batch) for batch in batches), recipe)

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        from headrace.models.onnx_export import open_graph

        contract = Contract.read(folder / "contract.json")
        session = open_graph(folder / "model.onnx")
        rows = tokens_of(texts_of(frame, recipe), contract, folder)
        return answer_by_length(rows, lambda tokens: session.run(None, {"tokens": tokens})[0])

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None and schema.tokenizer is not None
        rows = Encoder(schema.tokenizer).cut(texts_of(frame, recipe), LONGEST)
        return score_classification(
            class_indices(frame, schema, recipe),
            outputs,
            [str(label) for label in schema.labels],
            slices={"tokens": np.array([len(row) for row in rows])},
        )


def texts_of(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """The text of each row; nothing is the empty text.

    Raises:
        RecipeError: the table has no such column.
    """
    assert recipe.data.text is not None
    column = recipe.data.text.column
    if column not in frame:
        raise RecipeError(
            f"data.text.column: no column {column!r}; {near_miss(column, map(str, frame.columns))}",
            where=f"recipes/{recipe.name}.yaml",
            hint="name the column that holds the texts",
        )
    values = frame[column]
    return ["" if missing else str(plain(value)) for value, missing in zip(values, values.isna(), strict=True)]


def tokens_of(texts: list[str], contract: Contract, folder: Path) -> list[list[int]]:
    """Token ids of each text, by the tokenizer in `folder`, cut as the contract says."""
    (field,) = contract.inputs
    assert field.tokens is not None
    return Encoder((folder / "tokenizer.json").read_text(encoding="utf-8")).cut(texts, field.tokens)


def edges(schema: Schema) -> list[NDArray[np.int64]]:
    """Batches of random tokens to hold a graph against torch on: alone and 33 together, the shortest and the longest texts,
    nothing but padding, and every length in one batch."""
    rng = np.random.default_rng(0)
    longest, vocabulary = schema.shape.length, schema.shape.vocabulary
    shapes = [(1, 1), (1, longest), (33, 1), (33, longest)]
    batches = [rng.integers(len(SPECIAL), vocabulary, shape) for shape in shapes]
    for i, row in enumerate(batches[-1]):
        row[i * longest // 32 :] = PAD  # the first is empty, the last is full
    return batches
