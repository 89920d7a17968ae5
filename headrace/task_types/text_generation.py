"""Text generation: every row is a whole text, and the network learns to predict the next token.

The metric is bits per character, which does not depend on the tokenizer, computed for each passage of the test texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, RecipeError
from headrace.models.onnx_inference import open_graph
from headrace.models.schema import Schema, Shape
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.generation import TOKENS, SamplingParams, TextGenerator, generation_inputs
from headrace.runtime.tokenizer import END, PAD, START, UNKNOWN, Encoder
from headrace.task_types.base import TaskType

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.data import TextConfig
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe

METRIC = "bits_per_character"
PASSAGE = 1000
"""Characters of a test text that form one row of the evaluation; the gate resamples passages."""
SHOWN_PROMPT = 60
"""Length of the beginning of a test text that is the prompt of a sample, in characters."""
SAMPLES = 3
"""Number of generated texts stored for people to read."""


class TextGeneration(TaskType):
    """Continues prompts. Training rows are windows of `data.text.length` tokens."""

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        """Learns the vocabulary.

        Raises:
            RecipeError: text cannot be reconstructed from the chosen tokens.
            DataError: the texts are missing, or contain too few tokens.
        """
        from headrace.task_types.vocabulary import learn_vocabulary

        config = _config(recipe)
        if config.tokens == "words":
            raise RecipeError(
                "text cannot be generated from words: what is between them is lost",
                where="data.text.tokens",
                hint="set data.text.tokens to pieces (or characters)",
            )
        tokenizer = learn_vocabulary(required_texts(train, recipe), config)
        shape = Shape(vocabulary=Encoder(tokenizer).vocabulary, length=max(2, config.length))
        return Schema(shape=shape, tokenizer=tokenizer)

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        """Returns `tokens` `(windows, length)` int64: each text after a start token, cut into windows, the last one padded."""
        return {TOKENS: np.concatenate([_windows(ids[:-1], schema.shape.length) for ids in _all_ids(frame, schema, recipe)])}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """Returns, `(windows, length)` int64, the token that follows each token of `encode`: an end token last, then `PAD`."""
        return np.concatenate([_windows(ids[1:], schema.shape.length) for ids in _all_ids(frame, schema, recipe)])

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build_as
        from headrace.models.language import LanguageModel, LanguageNetwork

        return LanguageModel(build_as(config, schema.shape, LanguageNetwork))  # type: ignore[type-abstract]

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        length = schema.shape.length
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=generation_inputs(length),
            output="text",
            target=recipe.data.target,
            sample={
                "prompt": _beginning(required_texts(sample, recipe)[0], _encoder(schema), length),
                "max_tokens": 20,
                "temperature": 0.0,
            },
            served_by="bentos.models.generation:GenerationModel",
            threads=recipe.serve.threads,
        )

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        """Returns requests with the rows' texts as prompts."""
        return contract.to_feeds([{"prompt": text} for text in required_texts(frame, recipe)])

    def export(
        self, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
    ) -> dict[str, float]:
        """Writes the graph of one step, and the layout of the state between steps.

        Raises:
            ExportError: the graph's answers differ from torch's.
        """
        from headrace.models.language_export import check_step_parity, export_step

        layout = export_step(model, schema.shape, folder)
        return check_step_parity(model, schema.shape, folder, layout, recipe.name)

    def example(self, contract: Contract, folder: Path) -> Feeds:
        """Returns the second step for the contract's sample: in the first, the state is still empty."""
        language = _open(folder)
        prompt, steps = language.prompt(contract.sample["prompt"]), language.steps()
        return steps.feeds(steps(np.array([prompt])).argmax(axis=2)[:, -1:])

    def answers(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> NDArray[Any]:
        """Returns bits and number of characters of each passage of the rows' texts, `(passages, 2)`, in order."""
        language = _open(folder)
        return np.concatenate([_passage_bits(language, text) for text in required_texts(frame, recipe)])

    def truth(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        """Returns the row of each passage, `(passages,)`."""
        counts = [-(-len(text) // PASSAGE) for text in required_texts(frame, recipe)]
        return np.repeat(np.arange(len(frame)), counts)

    def row_scores(self, metric: str, y_true: NDArray[Any], outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        """Computes bits per character, also by the values of the other columns."""
        from headrace.evaluation.row_metrics import score_rows

        rows = self.truth(frame, schema, recipe)
        others = [column for column in frame.columns if column != _config(recipe).column]
        slices = {column: frame[column].to_numpy()[rows] for column in others}
        return score_rows({METRIC: outputs}, slices, _notes(frame, schema, recipe))

    def samples(self, folder: Path, frame: pd.DataFrame, recipe: Recipe) -> list[dict[str, str]]:
        """Returns a text from an empty prompt, and continuations of the beginnings of the first rows."""
        language = _open(folder)
        shown = required_texts(frame, recipe)[: SAMPLES - 1]
        prompts = ["", *(_beginning(text, language.encoder, language.layout.length) for text in shown)]
        writing = SamplingParams(seed=recipe.train.seed)
        return [
            {"prompt": p, "text": "".join(piece.text for piece in language.generate(language.prompt(p), writing))}
            for p in prompts
        ]


def required_texts(frame: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Returns the text of each row.

    Raises:
        DataError: a text is missing or empty.
    """
    column = _config(recipe).column
    texts = frame[column]
    if bad := int((~texts.map(lambda value: isinstance(value, str) and bool(value))).sum()):
        raise DataError(
            f"{bad} of {len(texts)} texts are empty or missing",
            where=f"column {column}",
            hint=f"add `drop_missing: [{column}]` to data in the recipe, or an expectation that values are present",
        )
    found: list[str] = texts.tolist()
    return found


def _config(recipe: Recipe) -> TextConfig:
    config = recipe.data.text
    assert config is not None
    if recipe.data.target != config.column:
        raise RecipeError(
            f"the target is {recipe.data.target!r}, but the texts are in {config.column!r}",
            where="data.target",
            hint=f"set data.target to {config.column}: the text itself is predicted",
        )
    return config


def _open(folder: Path) -> TextGenerator:
    return TextGenerator(folder, open_graph(folder / "model.onnx"))


def _encoder(schema: Schema) -> Encoder:
    assert schema.tokenizer is not None
    return Encoder(schema.tokenizer)


def _all_ids(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> list[list[int]]:
    encoder = _encoder(schema)
    return [[START, *encoder.tokens(text), END] for text in required_texts(frame, recipe)]


def _windows(ids: list[int], length: int) -> NDArray[np.int64]:
    """Returns tokens `(windows, length)`, padded."""
    windows = np.full(-(-len(ids) // length) * length, PAD, dtype=np.int64)
    windows[: len(ids)] = ids
    return windows.reshape(-1, length)


def _passage_bits(language: TextGenerator, text: str) -> NDArray[np.float64]:
    """Returns bits and characters, `(passages, 2)`; a token counts in the passage that has its first character."""
    ids, places = language.encoder.tokens_with_offsets(text)
    passages = -(-len(text) // PASSAGE)
    bits = np.bincount(np.array(places, dtype=np.int64) // PASSAGE, language.bits(ids), minlength=passages)
    characters = np.full(passages, float(PASSAGE))
    characters[-1] = len(text) - PASSAGE * (passages - 1)
    return np.stack([bits, characters], axis=1)


def _beginning(text: str, encoder: Encoder, length: int) -> str:
    """Returns the beginning of a text, stripped, of at most `SHOWN_PROMPT` characters and `length` tokens."""
    cut = text.strip()[:SHOWN_PROMPT].rstrip()
    while len(encoder.tokens(cut)) > length:
        cut = cut[: len(cut) // 2].rstrip()
    return cut


def _notes(frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> list[str]:
    """Returns notes on what the metric does not measure."""
    config, notes = _config(recipe), []
    unknown = sum(ids.count(UNKNOWN) for ids in _all_ids(frame, schema, recipe))
    if unknown:
        notes.append(f"{unknown:,} characters are in no training text: {METRIC} does not count which one it is")
    if config.lowercase:
        notes.append(f"data.text.lowercase: texts are converted to lower case, and {METRIC} is measured on that")
    return notes
